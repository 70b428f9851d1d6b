"""The losses by hand."""

import math

import pytest
import torch

from spin_core.losses import LOG_2, first_loss, pair_metrics, sft_loss, spin_losses

PAIRS = {
    "player_real_B": torch.tensor([-1.0, -5.0, -2.0]),
    "player_generated_B": torch.tensor([-4.0, -2.0, -3.0]),
    "opponent_real_B": torch.tensor([-2.0, -4.0, -2.0]),
    "opponent_generated_B": torch.tensor([-3.0, -3.0, -3.0]),
}
# The player's log-ratios: real +1, -1, 0; generated -1, +1, 0. With beta 0.5 the margins are 1, -1, 0.


def test_logistic_loss_by_hand():
    losses = spin_losses(**PAIRS, beta=0.5, kind="logistic")
    torch.testing.assert_close(losses, torch.tensor([math.log1p(math.exp(-1)), math.log1p(math.e), math.log(2)]))


def test_hinge_loss_by_hand():
    losses = spin_losses(**PAIRS, beta=0.5, kind="hinge")
    torch.testing.assert_close(losses, torch.tensor([0.0, 2.0, 1.0]))


@pytest.mark.parametrize("kind", ["logistic", "hinge"])
def test_the_loss_of_a_player_equal_to_its_opponent_is_the_first_loss(kind):
    same = torch.tensor([-3.0, -700.0])
    losses = spin_losses(
        player_real_B=same, player_generated_B=same - 5, opponent_real_B=same, opponent_generated_B=same - 5,
        beta=3.0, kind=kind,
    )  # fmt: skip
    torch.testing.assert_close(losses, torch.full((2,), first_loss(kind)))
    assert math.log(2) == LOG_2


def test_the_gradient_by_hand():
    pairs = {name: value.clone().requires_grad_() for name, value in PAIRS.items()}
    spin_losses(**pairs, beta=0.5, kind="logistic").sum().backward()
    pull = 0.5 * torch.sigmoid(-torch.tensor([1.0, -1.0, 0.0]))  # beta * sigmoid(-margin)
    torch.testing.assert_close(pairs["player_real_B"].grad, -pull)
    torch.testing.assert_close(pairs["player_generated_B"].grad, pull)


@pytest.mark.parametrize("kind", ["logistic", "hinge"])
def test_a_batch_equals_its_single_pairs(kind):
    batch = spin_losses(**PAIRS, beta=0.5, kind=kind)
    for i, loss in enumerate(batch):
        single = spin_losses(**{name: value[i : i + 1] for name, value in PAIRS.items()}, beta=0.5, kind=kind)
        assert single.item() == loss.item()


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_a_huge_margin_keeps_loss_and_gradient_finite(margin):
    zero, real = torch.zeros(1), torch.full((1,), margin, requires_grad=True)
    loss = spin_losses(
        player_real_B=real, player_generated_B=zero, opponent_real_B=zero, opponent_generated_B=zero,
        beta=1.0, kind="logistic",
    )  # fmt: skip
    loss.backward()
    assert loss.item() == max(0.0, -margin)
    assert real.grad.item() == (-1.0 if margin < 0 else 0.0)


def test_metrics_by_hand_and_a_tie_counts_as_wrong():
    metrics = {name: value.item() for name, value in pair_metrics(**PAIRS, beta=0.5).items()}
    assert metrics == pytest.approx(
        {
            "rewards/real": 0.0,
            "rewards/generated": 0.0,
            "rewards/margins": 0.0,
            "rewards/accuracies": 1 / 3,
            "logps/real": -8 / 3,
            "logps/generated": -3.0,
        }
    )


def test_the_sft_loss_is_the_mean_over_tokens():
    assert sft_loss(logps_B=torch.tensor([-4.0, -8.0]), tokens=6).item() == 2.0
