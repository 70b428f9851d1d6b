"""The losses of the game, as pure functions of log-probabilities. Shapes: B pairs.

log-probabilities are sums over a response's tokens, in float32, as `logps.py` makes them. "SPIN" is Chen et al. 2024,
arXiv 2401.01335.
"""

import math
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

MarginLoss = Literal["logistic", "hinge", "exponential", "correlation"]

LOG_2 = 0.6931471805599453

STEEPEST = 30.0
"""Below a margin of minus this, the exponential loss goes on along its tangent: e^30 is steep enough for any clipped
gradient, and nothing overflows."""


def rewards(*, player_B: Tensor, opponent_B: Tensor, beta: float) -> Tensor:
    """beta * log(p_player / p_opponent) of each response, (B,): what the player thinks more likely than its opponent.

    This is the function f of SPIN's game (eq. 4.5); `beta` is its lambda.
    """
    return beta * (player_B - opponent_B)


def margin_losses(margins_B: Tensor, kind: MarginLoss) -> Tensor:
    """l(m) of each margin, (B,), for the losses that assumption 5.1 of SPIN covers: convex, and falling at 0.

    `logistic` is log(1 + e^-m), `hinge` max(0, 1 - m), `exponential` e^-m, `correlation` 1 - m.
    """
    if kind == "hinge":
        return F.relu(1 - margins_B)
    if kind == "correlation":
        return 1 - margins_B
    if kind == "exponential":
        kept_B = margins_B.clamp(min=-STEEPEST)
        return (-kept_B).exp() + math.exp(STEEPEST) * (kept_B - margins_B)
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
    """The loss of each pair, (B,): l(reward of the real response - reward of the generated one), SPIN's eq. 4.7.

    Player and opponent start an iteration as the same weights, so the first loss is l(0). Any other value means that
    they scored different tokens. With preferences for pairs and a fixed reference for opponent, `logistic` is DPO
    (arXiv 2305.18290, eq. 7).
    """
    margins_B = rewards(player_B=player_real_B, opponent_B=opponent_real_B, beta=beta) - rewards(
        player_B=player_generated_B, opponent_B=opponent_generated_B, beta=beta
    )
    return margin_losses(margins_B, kind)


def first_loss(kind: MarginLoss) -> float:
    """What the loss is while the player is its opponent: l(0)."""
    return LOG_2 if kind == "logistic" else 1.0


def pair_metrics(
    *,
    player_real_B: Tensor,
    player_generated_B: Tensor,
    opponent_real_B: Tensor,
    opponent_generated_B: Tensor,
    beta: float,
) -> dict[str, Tensor]:
    """Means over the pairs, under the names that the field uses, as scalars on the pairs' device.

    Accuracy is the part of pairs whose real response has the larger reward; at the start it is 0, since all are equal.
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


def sft_loss(*, logps_B: Tensor, tokens: int) -> Tensor:
    """Continued fine-tuning: the mean negative log-likelihood of a token, a scalar; `tokens` counts the whole batch."""
    return -logps_B.sum() / tokens
