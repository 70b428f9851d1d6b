"""The losses by hand."""

import math
from functools import partial

import pytest
import torch

from spin_core.training.losses import (
    LOG_2,
    STEEPEST,
    first_loss,
    margin_losses,
    mixed_reference,
    nll_losses,
    pair_metrics,
    space_losses,
    spin_losses,
    t_spin_losses,
)

PAIRS = {
    "player_real_B": torch.tensor([-1.0, -5.0, -2.0]),
    "player_generated_B": torch.tensor([-4.0, -2.0, -3.0]),
    "opponent_real_B": torch.tensor([-2.0, -4.0, -2.0]),
    "opponent_generated_B": torch.tensor([-3.0, -3.0, -3.0]),
}
# The player's log-ratios: real +1, -1, 0; generated -1, +1, 0. With beta 0.5 the margins are 1, -1, 0.

BY_HAND = {
    "logistic": [math.log1p(math.exp(-1)), math.log1p(math.e), math.log(2)],
    "hinge": [0.0, 2.0, 1.0],
    "exponential": [math.exp(-1), math.e, 1.0],
    "correlation": [0.0, 2.0, 1.0],
}
KINDS = list(BY_HAND)


def logistic(margin: float) -> float:
    return math.log1p(math.exp(-margin))


@pytest.mark.parametrize("kind", KINDS)
def test_a_margin_loss_by_hand(kind):
    torch.testing.assert_close(spin_losses(**PAIRS, beta=0.5, kind=kind), torch.tensor(BY_HAND[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_player_equal_to_its_opponent_is_the_first_loss(kind):
    same = torch.tensor([-3.0, -700.0])
    losses = spin_losses(
        player_real_B=same, player_generated_B=same - 5, opponent_real_B=same, opponent_generated_B=same - 5,
        beta=3.0, kind=kind,
    )  # fmt: skip
    torch.testing.assert_close(losses, torch.full((2,), first_loss(kind)))
    assert math.log(2) == LOG_2


@pytest.mark.parametrize(
    ("kind", "slope"),
    [
        ("logistic", lambda margin: -1 / (1 + math.exp(margin))),
        ("hinge", lambda margin: -1.0 if margin < 1 else 0.0),
        ("exponential", lambda margin: -math.exp(-margin)),
        ("correlation", lambda margin: -1.0),  # noqa: ARG005
    ],
)
def test_the_gradient_by_hand(kind, slope):
    pairs = {name: value.clone().requires_grad_() for name, value in PAIRS.items()}
    spin_losses(**pairs, beta=0.5, kind=kind).sum().backward()
    # At margin 1 the hinge has a corner, and its gradient there may be anything between the two sides'.
    pull = torch.tensor([0.5 * slope(margin + 1e-9) for margin in (1.0, -1.0, 0.0)])
    torch.testing.assert_close(pairs["player_real_B"].grad, pull)
    torch.testing.assert_close(pairs["player_generated_B"].grad, -pull)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_single_pairs(kind):
    batch = spin_losses(**PAIRS, beta=0.5, kind=kind)
    for i, loss in enumerate(batch):
        single = spin_losses(**{name: value[i : i + 1] for name, value in PAIRS.items()}, beta=0.5, kind=kind)
        assert single.item() == loss.item()


@pytest.mark.parametrize(
    ("kind", "lost", "won", "pull"),
    [
        ("logistic", 1e4, 0.0, -1.0),
        ("hinge", 1e4 + 1, 0.0, -1.0),
        ("exponential", math.exp(STEEPEST) * (1e4 - STEEPEST + 1), 0.0, -math.exp(STEEPEST)),
        ("correlation", 1e4 + 1, 1 - 1e4, -1.0),
    ],
)
def test_a_huge_margin_keeps_loss_and_gradient_finite(kind, lost, won, pull):
    margins = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = margin_losses(margins, kind)
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.tensor([lost, won]))
    torch.testing.assert_close(margins.grad, torch.tensor([pull, -1.0 if kind == "correlation" else 0.0]))


def test_the_exponential_continues_along_its_tangent_without_a_jump():
    margins = torch.tensor([-STEEPEST + 1e-6, -STEEPEST - 1e-6], dtype=torch.float64, requires_grad=True)
    losses = margin_losses(margins, "exponential")
    losses.sum().backward()
    assert (losses[1] / losses[0]).item() == pytest.approx(1, abs=1e-5)
    assert (margins.grad[1] / margins.grad[0]).item() == pytest.approx(1, abs=1e-5)


# T-SPIN


def t_spin(real, generated, initial, history_weight=0.25):
    return t_spin_losses(
        player_real_B=real, player_generated_B=generated, player_initial_B=initial,
        beta=0.5, history_weight=history_weight,
    )  # fmt: skip


def test_the_t_spin_loss_by_hand():
    real, generated, initial = torch.tensor([-1.0, -6.0]), torch.tensor([-3.0, -2.0]), torch.tensor([-7.0, -2.0])
    want = [logistic(1.0) + 0.25 * logistic(2.0), logistic(-2.0) + 0.25 * math.log(2)]
    torch.testing.assert_close(t_spin(real, generated, initial), torch.tensor(want))
    torch.testing.assert_close(t_spin(real, generated, None), torch.tensor([logistic(1.0), logistic(-2.0)]))


def test_the_t_spin_gradient_lifts_the_real_response_and_lowers_the_initial_one():
    real, generated, initial = (torch.tensor([value], requires_grad=True) for value in (-1.0, -3.0, -7.0))
    t_spin(real, generated, initial).backward()
    now, before = -0.5 / (1 + math.exp(1.0)), -0.5 * 0.25 / (1 + math.exp(2.0))
    assert real.grad.item() == pytest.approx(now)
    assert generated.grad.item() == pytest.approx(before - now)
    assert initial.grad.item() == pytest.approx(-before)


def test_three_responses_that_are_equally_likely_cost_log_2_each_way():
    same = torch.tensor([-3.0, -700.0])
    torch.testing.assert_close(t_spin(same, same, same), torch.full((2,), 1.25 * LOG_2))


# SPACE


def test_the_space_loss_by_hand():
    real, generated, mu = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0]), 3.0

    def posterior(reward: float, ratio: float) -> float:
        return 1 / (1 + ratio * math.exp(-reward))

    want = [-math.log(posterior(r, mu)) - mu * math.log(posterior(-g, 1 / mu)) for r, g in [(1.0, 0.5), (-2.0, 0.0)]]
    torch.testing.assert_close(space_losses(real_B=real, generated_B=generated, mu=mu), torch.tensor(want))


@pytest.mark.parametrize("mu", [0.5, 1.0, 4.0])
def test_the_space_loss_of_a_player_equal_to_its_opponent_is_the_first_loss_with_equal_gradients(mu):
    real, generated = (torch.zeros(3, requires_grad=True) for _ in range(2))
    losses = space_losses(real_B=real, generated_B=generated, mu=mu)
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.full((3,), first_loss("space", mu)))
    torch.testing.assert_close(real.grad, torch.full((3,), -mu / (1 + mu)))
    torch.testing.assert_close(generated.grad, -real.grad)
    assert first_loss("space") == pytest.approx(2 * LOG_2)


@pytest.mark.parametrize(
    "loss", [partial(space_losses, mu=2.0), lambda real_B, generated_B: t_spin(real_B, generated_B, -real_B)]
)
def test_huge_log_ratios_keep_the_other_losses_finite(loss):
    real, generated = (torch.tensor(values, requires_grad=True) for values in ([1e4, -1e4], [-1e4, 1e4]))
    losses = loss(real_B=real, generated_B=generated)
    losses.sum().backward()
    for values in (losses, real.grad, generated.grad):
        assert values.isfinite().all()
    assert losses[1] > 1e3


# Additions


def test_the_nll_is_a_mean_over_each_responses_tokens():
    logps = torch.tensor([-6.0, -1.0, 0.0], requires_grad=True)
    nll = nll_losses(player_real_B=logps, tokens_B=torch.tensor([3, 2, 0]))
    nll.sum().backward()
    torch.testing.assert_close(nll, torch.tensor([2.0, 0.5, 0.0]))
    torch.testing.assert_close(logps.grad, torch.tensor([-1 / 3, -1 / 2, -1.0]))


def test_the_mixed_reference_is_between_opponent_and_initial_policy():
    opponent, initial = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -2.0])
    mixed = mixed_reference(opponent_B=opponent, initial_B=initial, anchor=0.25)
    torch.testing.assert_close(mixed, torch.tensor([-1.5, -3.5]))
    assert torch.equal(mixed_reference(opponent_B=opponent, initial_B=initial, anchor=0.0), opponent)
    assert torch.equal(mixed_reference(opponent_B=opponent, initial_B=initial, anchor=1.0), initial)


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
