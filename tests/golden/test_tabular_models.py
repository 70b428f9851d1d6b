"""Tabular models: one logit a sequence, so that expectations are exact sums and the theory can be checked.

Shapes: S sequences, C combinations of a real, a generated and (for T-SPIN) an initial sequence. The expected loss is
over all of them, real ~ p_data, generated ~ p_t and initial ~ p_0, each weighted with its probability.
"""

import math

import pytest
import torch
from torch import Tensor

from spin_core.config.train import TrainConfig
from spin_core.training.objective import Objective, objective_of

S = 8

MARGIN = ("logistic", "hinge", "exponential", "correlation")


def distribution(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(S, generator=generator, dtype=torch.float64), 0)


def total_variation(p: Tensor, q: Tensor) -> float:
    return (p - q).abs().sum().item() / 2


def expected_loss(
    objective: Objective,
    logits_S: Tensor,
    p_data: Tensor,
    p_t: Tensor,
    p_0: Tensor | None = None,
    *,
    drop_identical: bool = False,
) -> Tensor:
    """L(theta, theta_t), exactly: eq. 4.7 for the margin losses; with `drop_identical` without pairs of equal ones."""
    player_S, opponent_S = torch.log_softmax(logits_S, 0), p_t.log()
    sources = [p_data, p_t] if p_0 is None else [p_data, p_t, p_0]
    sources = sources[: objective.sides]
    index_PC = [
        index.reshape(-1) for index in torch.meshgrid(*[torch.arange(len(p_data))] * objective.sides, indexing="ij")
    ]
    weight_C = math.prod(source[index] for source, index in zip(sources, index_PC, strict=True))
    if drop_identical:
        weight_C = weight_C * (index_PC[0] != index_PC[1])
    player_PC = torch.stack([player_S[index] for index in index_PC])
    opponent_PC = torch.stack([opponent_S[index] for index in index_PC[:2]])
    initial_PC = None if p_0 is None else torch.stack([p_0.log()[index] for index in index_PC[:2]])
    # Each sequence counts as one token.
    tokens_PC = torch.ones_like(player_PC, dtype=torch.int64)
    return (weight_C * objective.losses(player_PC, objective.reference(opponent_PC, initial_PC), tokens_PC)).sum()


def best_response(
    objective: Objective, p_data: Tensor, p_t: Tensor, p_0: Tensor | None = None, *, drop_identical: bool = False
) -> Tensor:
    """The player that minimises the expected loss, from the opponent's own logits."""
    logits_S = p_t.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits_S], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_loss(objective, logits_S, p_data, p_t, p_0, drop_identical=drop_identical)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert logits_S.grad.abs().max() < 1e-7
    return torch.softmax(logits_S.detach(), 0)


def stepped(objective: Objective, p_data: Tensor, p_t: Tensor, p_0: Tensor, steps: int, rate: float) -> Tensor:
    """The player after some steps of gradient descent from its opponent, as in real training."""
    logits_S = p_t.log().clone().requires_grad_()
    optimizer = torch.optim.SGD([logits_S], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        expected_loss(objective, logits_S, p_data, p_t, p_0).backward()
        optimizer.step()
    return torch.softmax(logits_S.detach(), 0)


def normalised(weight_S: Tensor) -> Tensor:
    return weight_S / weight_S.sum()


# The margin losses of SPIN


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_iteration_has_the_closed_form_of_theorem_5_4(beta, seed):
    """p_{t+1} is proportional to p_t (p_data / p_t)^(1 / lambda)."""
    p_data, p_t = distribution(seed), distribution(seed + 100)
    want = normalised(p_t * (p_data / p_t) ** (1 / beta))
    torch.testing.assert_close(best_response(Objective("logistic", beta), p_data, p_t), want, rtol=1e-4, atol=1e-7)


def test_with_lambda_1_one_iteration_reaches_p_data():
    p_data = distribution(0)
    reached = best_response(Objective("logistic", beta=1.0), p_data, distribution(100))
    torch.testing.assert_close(reached, p_data, rtol=1e-4, atol=1e-7)


def test_with_lambda_2_iterations_come_closer_to_p_data_by_half_each():
    p_data, p_t = distribution(0), distribution(100)
    ratios = []
    for _ in range(4):
        before = (p_data / p_t).log()
        p_t = best_response(Objective("logistic", beta=2.0), p_data, p_t)
        after = (p_data / p_t).log()
        ratios.append(((after - after.mean()).norm() / (before - before.mean()).norm()).item())
    assert ratios == pytest.approx([0.5] * 4, abs=1e-3)


def test_with_the_exponential_one_iteration_has_half_the_logistic_ones_exponent():
    """Where margins are free, e^-m is least at m = log(p_data / p_t) / 2: boosting's classic result."""
    p_data, p_t = distribution(0), distribution(100)
    want = normalised(p_t * (p_data / p_t) ** 0.5)
    torch.testing.assert_close(best_response(Objective("exponential", 1.0), p_data, p_t), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [*MARGIN, "space"])
@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("nll_weight", [0.0, 0.5])
def test_p_data_is_a_fixed_point_and_no_player_beats_it(kind, beta, nll_weight):
    """Theorem 5.2. The hinge has a gradient too at margin 0, since 0 is on its slope."""
    p_data = distribution(0)
    logits_S = p_data.log().clone().requires_grad_()
    objective = Objective(kind, beta, nll_weight=nll_weight, space_mu=2.0)
    loss = expected_loss(objective, logits_S, p_data, p_data)
    loss.backward()
    entropy = -(p_data * p_data.log()).sum().item()
    assert loss.item() == pytest.approx(objective.first_loss + nll_weight * entropy, abs=1e-12)
    assert logits_S.grad.abs().max() < 1e-12
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 1.0, 10.0):
        for _ in range(10):
            push = size * torch.randn(S, generator=generator, dtype=torch.float64)
            assert expected_loss(objective, logits_S.detach() + push, p_data, p_data) >= loss.item() - 1e-12


def test_away_from_p_data_the_opponent_is_no_minimum():
    p_data, p_t = distribution(0), distribution(100)
    logits_S = p_t.log().clone().requires_grad_()
    objective = Objective("logistic", beta=1.0)
    expected_loss(objective, logits_S, p_data, p_t).backward()
    # dL/dlogits at the opponent is -(beta / 2) (p_data - p_t): the player moves straight towards the data.
    torch.testing.assert_close(logits_S.grad, -0.5 * (p_data - p_t), rtol=1e-9, atol=1e-12)
    assert expected_loss(objective, logits_S.detach() - 0.1 * logits_S.grad, p_data, p_t) < math.log(2)


# All objectives


@pytest.mark.parametrize(
    "objective",
    [
        *(Objective(kind, beta=0.5) for kind in (*MARGIN, "space")),
        Objective("logistic", beta=0.5, nll_weight=0.5),
        Objective("logistic", beta=0.5, anchor=0.2),
        Objective("space", beta=1.0, space_mu=3.0),
        Objective("t-spin", beta=0.5),
        Objective("t-spin", beta=0.5, history_weight=0.1),
    ],
    ids=lambda objective: f"{objective.kind}-{objective.nll_weight}-{objective.anchor}-{objective.history_weight}",
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_iteration_brings_the_player_nearer_to_p_data(objective, seed):
    p_data, p_0 = distribution(seed), distribution(seed + 100)
    p_t, distances = p_0, [total_variation(p_0, p_data)]
    for _ in range(3):
        p_t = stepped(objective, p_data, p_t, p_0, steps=10, rate=0.1)
        distances.append(total_variation(p_t, p_data))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.95 * distances[0]


# Pairs of two equal responses


@pytest.mark.parametrize("kind", MARGIN[:1] + MARGIN[2:3])
def test_without_identical_pairs_the_best_response_of_a_margin_loss_is_the_same(kind):
    p_data, p_t = distribution(0), distribution(100)
    objective = Objective(kind, beta=1.0)
    without = best_response(objective, p_data, p_t, drop_identical=True)
    torch.testing.assert_close(without, best_response(objective, p_data, p_t), rtol=1e-4, atol=1e-7)


def test_without_identical_pairs_space_does_not_reach_the_data():
    p_data, p_t = (torch.tensor(p, dtype=torch.float64) for p in ((0.7, 0.2, 0.1), (0.6, 0.3, 0.1)))
    objective = Objective("space", beta=1.0)
    torch.testing.assert_close(best_response(objective, p_data, p_t), p_data, rtol=1e-4, atol=1e-7)
    biased = best_response(objective, p_data, p_t, drop_identical=True)
    torch.testing.assert_close(biased, torch.tensor([0.743, 0.164, 0.093], dtype=torch.float64), rtol=0, atol=5e-4)


@pytest.mark.parametrize("t", [0, 1])
@pytest.mark.parametrize(
    "settings",
    [
        *({"loss": kind} for kind in (*MARGIN, "space", "sft", "t-spin")),
        {"nll_weight": 0.5},
        {"nll_weight": (0.0, 0.5)},
        {"anchor": 0.3},
        {"loss": "t-spin", "t_spin_weight": 0.0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_identical_pairs_are_needed_exactly_where_they_have_a_gradient(settings, t):
    config = TrainConfig(**settings)
    objective = objective_of(config, t)
    player_PB = torch.full((objective.sides, 1), -3.0, dtype=torch.float64)
    player_PB[2:] = -4.0
    # Both responses of the pair are one, so they share a log-probability.
    shared_B = player_PB[0].clone().requires_grad_()
    reference_PB = torch.full((2, 1), -2.5, dtype=torch.float64)
    responses_PB = torch.cat([shared_B.expand(min(2, objective.sides), 1), player_PB[2:]])
    tokens_PB = torch.full((objective.sides, 1), 4)
    loss = objective.losses(responses_PB, reference_PB, tokens_PB).sum()
    (gradient,) = torch.autograd.grad(loss, shared_B)
    assert config.needs_identical_pairs(t) == bool(gradient.abs().max() > 1e-12)


# SPACE


@pytest.mark.parametrize("mu", [0.25, 1.0, 4.0])
def test_with_beta_1_space_reaches_p_data_in_one_iteration_for_any_mu(mu):
    p_data = distribution(0)
    reached = best_response(Objective("space", beta=1.0, space_mu=mu), p_data, distribution(100))
    torch.testing.assert_close(reached, p_data, rtol=1e-4, atol=1e-7)


# T-SPIN


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_without_a_reference_the_best_response_forgets_its_opponent(alpha):
    """T-SPIN's first term alone is least at p_{t+1} proportional to (p_data / p_t)^(1 / alpha)."""
    p_data, p_t = distribution(0), distribution(100)
    want = normalised((p_data / p_t) ** (1 / alpha))
    torch.testing.assert_close(best_response(Objective("t-spin", alpha), p_data, p_t), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("history_weight", [0.0, 0.1])
def test_p_data_is_no_fixed_point_of_t_spin(history_weight):
    """So it depends on early stopping: trained to its end at p_t = p_data, it moves away from the data."""
    p_data = distribution(0)
    objective = Objective("t-spin", beta=1.0, history_weight=history_weight)
    assert total_variation(best_response(objective, p_data, p_data, distribution(100)), p_data) > 0.05


# The anchored reference


def test_an_anchored_reference_takes_the_opponents_place_in_the_closed_form():
    p_data, p_t, p_0 = distribution(0), distribution(100), distribution(200)
    reference = normalised(p_t**0.7 * p_0**0.3)
    want = normalised(reference * (p_data / p_t) ** 0.5)
    objective = Objective("logistic", beta=2.0, anchor=0.3)
    torch.testing.assert_close(best_response(objective, p_data, p_t, p_0), want, rtol=1e-4, atol=1e-7)


def test_with_an_anchor_the_fixed_point_is_between_the_data_and_the_initial_policy():
    """p^(1 + lambda a) is proportional to p_data p_0^(lambda a), with a the anchor."""
    p_data, p_0, anchor, beta = distribution(0), distribution(100), 0.3, 2.0
    between = normalised((p_data * p_0 ** (beta * anchor)) ** (1 / (1 + beta * anchor)))
    objective = Objective("logistic", beta, anchor=anchor)
    torch.testing.assert_close(best_response(objective, p_data, between, p_0), between, rtol=1e-4, atol=1e-7)
