"""The losses of the game, as pure functions of log-probabilities. Shapes: B pairs.

Log-probabilities are sums over a response's tokens, in float32, as `models/logps.py` computes them. y is the real
response, y' the generated one. "SPIN" is Chen et al. 2024, arXiv 2401.01335.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

MarginLoss = Literal["logistic", "hinge", "exponential", "correlation"]

LOG_2 = 0.6931471805599453

STEEPEST = 30.0
"""Below a margin of minus this, the exponential loss continues along its tangent. Its slope e^30 is large enough for
any clipped gradient, and nothing overflows."""


def rewards(*, player_B: Tensor, opponent_B: Tensor, beta: float) -> Tensor:
    """beta * log(p_player / p_opponent) of each response, (B,).

    Positive where the response is more likely under the player than under its opponent. This is the function f of
    SPIN's game (eq. 4.5); `beta` is its lambda.
    """
    return beta * (player_B - opponent_B)


def margin_losses(margins_B: Tensor, kind: MarginLoss) -> Tensor:
    """l(m) of each margin, (B,), for losses within SPIN's assumption 5.1: convex, decreasing at 0.

    `logistic` is log(1 + e^-m), `hinge` max(0, 1 - m), `exponential` e^-m, `correlation` 1 - m.
    """
    if kind == "hinge":
        return F.relu(1 - margins_B)
    if kind == "correlation":
        return 1 - margins_B
    if kind == "exponential":
        tangent_B = math.exp(STEEPEST) * (1 - STEEPEST - margins_B)
        return torch.where(margins_B < -STEEPEST, tangent_B, (-margins_B.clamp(min=-STEEPEST)).exp())
    return -F.logsigmoid(margins_B)


def spin_losses(
    *,
    player_real_B: Tensor,
    player_generated_B: Tensor,
    opponent_real_B: Tensor,
    opponent_generated_B: Tensor,
    beta: float,
    kind: MarginLoss,
) -> Tensor:
    """SPIN's loss of each pair, (B,), eq. 4.7: l(reward(y) - reward(y')).

    Player and opponent have the same weights when an iteration starts, so the first loss is l(0); for `logistic`, log
    2. Any other value means that they scored different tokens. With preferences as pairs and a fixed reference as
    opponent, `logistic` is DPO (arXiv 2305.18290, eq. 7).
    """
    margins_B = rewards(player_B=player_real_B, opponent_B=opponent_real_B, beta=beta) - rewards(
        player_B=player_generated_B, opponent_B=opponent_generated_B, beta=beta
    )
    return margin_losses(margins_B, kind)


def t_spin_losses(
    *,
    player_real_B: Tensor,
    player_generated_B: Tensor,
    player_initial_B: Tensor | None,
    beta: float,
    history_weight: float,
) -> Tensor:
    """T-SPIN's loss of each triplet, (B,): arXiv 2601.08198, whose alpha is `beta` and whose beta `history_weight`.

    l(alpha log p(y) - alpha log p(y')) + beta l(alpha log p(y') - alpha log p(y0)), l logistic: the current advantage
    of the real response y over the opponent's y', and the historical one of y' over y0, the answer of the initial
    policy θ_0. There is no reference; an entropy constraint replaces it. Without y0, in iteration 0, the second term is
    left out.
    """
    losses_B = margin_losses(beta * (player_real_B - player_generated_B), "logistic")
    if player_initial_B is None:
        return losses_B
    return losses_B + history_weight * history_losses(
        player_generated_B=player_generated_B, player_initial_B=player_initial_B, beta=beta
    )


def history_losses(*, player_generated_B: Tensor, player_initial_B: Tensor, beta: float) -> Tensor:
    """The second term of T-SPIN's loss before it is weighted, (B,)."""
    return margin_losses(beta * (player_generated_B - player_initial_B), "logistic")


def space_losses(*, real_B: Tensor, generated_B: Tensor, mu: float) -> Tensor:
    """SPACE's loss of each pair of rewards, (B,): arXiv 2512.07175, noise contrastive estimation with p_t for noise.

    -log s_mu(r(y)) - mu log s_{1/mu}(-r(y')), s_mu(r) = 1 / (1 + mu e^-r): the posterior that a response is real, if
    there are `mu` generated ones for each real one. Each reward counts by itself, not by its margin over the other.
    With beta = 1, as in the paper, the minimum is where the player equals p_data.
    """
    log_mu = math.log(mu)
    return F.softplus(log_mu - real_B) + mu * F.softplus(generated_B - log_mu)


def nll_losses(*, player_real_B: Tensor, tokens_B: Tensor) -> Tensor:
    """Negative log-likelihood of each real response, its mean over tokens, (B,): the term that arXiv 2404.19733 adds.

    An empty response gives 0.
    """
    return -player_real_B / tokens_B.clamp(min=1)


def mixed_reference(*, opponent_B: Tensor, initial_B: Tensor, anchor: float) -> Tensor:
    """The log-probability of each response under the geometric mixture p_t^(1 - anchor) p_0^anchor, (B,).

    This is alpha-SPIN's reference (arXiv 2404.04291) without its normalisation, a constant that cancels in every
    margin.
    """
    return (1 - anchor) * opponent_B + anchor * initial_B


def first_loss(kind: MarginLoss | Literal["space"], mu: float = 1.0) -> float:
    """The loss while the player equals its opponent, so that all rewards are 0."""
    if kind == "space":
        return math.log1p(mu) + mu * math.log1p(1 / mu)
    return LOG_2 if kind == "logistic" else 1.0


def pair_metrics(
    *,
    player_real_B: Tensor,
    player_generated_B: Tensor,
    opponent_real_B: Tensor,
    opponent_generated_B: Tensor,
    beta: float,
) -> dict[str, Tensor]:
    """Means over the pairs under the usual metric names, as scalars on the pairs' device.

    The accuracy is the share of pairs whose real response has the larger reward; at the start all are equal and it is
    0.
    """
    real_B = rewards(player_B=player_real_B, opponent_B=opponent_real_B, beta=beta)
    generated_B = rewards(player_B=player_generated_B, opponent_B=opponent_generated_B, beta=beta)
    return {
        "rewards/real": real_B.mean(),
        "rewards/generated": generated_B.mean(),
        "rewards/margins": (real_B - generated_B).mean(),
        "rewards/accuracies": (real_B > generated_B).float().mean(),
        "logps/real": player_real_B.mean(),
        "logps/generated": player_generated_B.mean(),
    }


def length_correlation(*, margins_B: Tensor, longer_B: Tensor) -> Tensor:
    """Pearson's correlation of reward margins with the extra tokens of the real responses, a scalar.

    It is computed within a batch, so that margins that grow from step to step do not dilute it. It is 0 where all pairs
    have the same margin or the same difference in length.
    """
    margins_B, longer_B = (values.double() - values.double().mean() for values in (margins_B, longer_B))
    size = (margins_B.square().sum() * longer_B.square().sum()).sqrt()
    return torch.where(size > 0, (margins_B * longer_B).sum() / size.clamp(min=1e-300), 0.0).float()
