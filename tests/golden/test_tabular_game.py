"""The game in a table: one logit a sequence, so that expectations are exact sums and the theory can be checked.

Shapes: S sequences. The expected loss is over all pairs of a real and a generated sequence, real ~ p_data and
generated ~ p_t, each weighted with its probability.
"""

import math

import pytest
import torch
from torch import Tensor

from spin_core.losses import spin_losses

S = 8


def distribution(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(S, generator=generator, dtype=torch.float64), 0)


def expected_loss(logits_S: Tensor, p_data: Tensor, p_t: Tensor, beta: float, kind: str = "logistic") -> Tensor:
    """L(theta, theta_t) of eq. 4.7, exactly."""
    player_S, opponent_S = torch.log_softmax(logits_S, 0), p_t.log()
    real, generated = (index.reshape(-1) for index in torch.meshgrid(*[torch.arange(S)] * 2, indexing="ij"))
    losses = spin_losses(
        player_real_B=player_S[real], player_generated_B=player_S[generated],
        opponent_real_B=opponent_S[real], opponent_generated_B=opponent_S[generated],
        beta=beta, kind=kind,
    )  # fmt: skip
    return (p_data[real] * p_t[generated] * losses).sum()


def best_response(p_data: Tensor, p_t: Tensor, beta: float) -> Tensor:
    """The player that minimises the expected loss, from the opponent's own logits."""
    logits_S = p_t.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits_S], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_loss(logits_S, p_data, p_t, beta)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert logits_S.grad.abs().max() < 1e-7
    return torch.softmax(logits_S.detach(), 0)


def closed_form(p_data: Tensor, p_t: Tensor, beta: float) -> Tensor:
    """p_{t+1}, proportional to p_t (p_data / p_t)^(1 / lambda): theorem 5.4."""
    unnormalised = p_t * (p_data / p_t) ** (1 / beta)
    return unnormalised / unnormalised.sum()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_iteration_has_the_closed_form_of_theorem_5_4(beta, seed):
    p_data, p_t = distribution(seed), distribution(seed + 100)
    torch.testing.assert_close(best_response(p_data, p_t, beta), closed_form(p_data, p_t, beta), rtol=1e-4, atol=1e-7)


def test_with_lambda_1_one_iteration_reaches_p_data():
    p_data = distribution(0)
    torch.testing.assert_close(best_response(p_data, distribution(100), beta=1.0), p_data, rtol=1e-4, atol=1e-7)


def test_with_lambda_2_iterations_come_closer_to_p_data_by_half_each():
    p_data, p_t = distribution(0), distribution(100)
    ratios = []
    for _ in range(4):
        before = (p_data / p_t).log()
        p_t = best_response(p_data, p_t, beta=2.0)
        after = (p_data / p_t).log()
        ratios.append(((after - after.mean()).norm() / (before - before.mean()).norm()).item())
    assert ratios == pytest.approx([0.5] * 4, abs=1e-3)


@pytest.mark.parametrize("kind", ["logistic", "hinge"])
@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_p_data_is_a_fixed_point_and_no_player_beats_the_first_loss(beta, kind):
    """Theorem 5.2. The hinge has a gradient too at margin 0, since 0 lies on its slope."""
    p_data = distribution(0)
    logits_S = p_data.log().clone().requires_grad_()
    loss = expected_loss(logits_S, p_data, p_data, beta, kind)
    loss.backward()
    first = math.log(2) if kind == "logistic" else 1.0
    assert loss.item() == pytest.approx(first, abs=1e-12)
    assert logits_S.grad.abs().max() < 1e-12
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 1.0, 10.0):
        for _ in range(20):
            push = size * torch.randn(S, generator=generator, dtype=torch.float64)
            assert expected_loss(logits_S.detach() + push, p_data, p_data, beta, kind) >= first - 1e-12


def test_away_from_p_data_the_opponent_is_no_minimum():
    p_data, p_t = distribution(0), distribution(100)
    logits_S = p_t.log().clone().requires_grad_()
    expected_loss(logits_S, p_data, p_t, beta=1.0).backward()
    # dL/dlogits at the opponent is -(beta / 2) (p_data - p_t): the player moves straight towards the data.
    torch.testing.assert_close(logits_S.grad, -0.5 * (p_data - p_t), rtol=1e-9, atol=1e-12)
    assert expected_loss(logits_S.detach() - 0.1 * logits_S.grad, p_data, p_t, beta=1.0) < math.log(2)
