"""The losses of SPIN, as pure functions of log-probabilities. Shapes: B pairs.

log-probabilities are sums over a response's tokens, in float32, as `logps.py` makes them.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

LOG_2 = 0.6931471805599453


def rewards(*, player_B: Tensor, opponent_B: Tensor, beta: float) -> Tensor:
    """beta * log(p_player / p_opponent) of each response, (B,): what the player thinks more likely than its opponent.

    This is the function f of the paper's game (eq. 4.5); `beta` is its lambda.
    """
    return beta * (player_B - opponent_B)


def spin_losses(
    *,
    player_real_B: Tensor,
    player_generated_B: Tensor,
    opponent_real_B: Tensor,
    opponent_generated_B: Tensor,
    beta: float,
    kind: Literal["logistic", "hinge"],
) -> Tensor:
    """The loss of each pair, (B,): l(reward of the real response - reward of the generated one), eq. 4.7.

    `logistic` is the paper's l(m) = log(1 + e^-m), `hinge` is max(0, 1 - m), which its theory covers as well. Player
    and opponent start an iteration as the same weights, so the first loss is log 2 (hinge: 1). Any other value means
    that they scored different tokens.
    """
    margins_B = rewards(player_B=player_real_B, opponent_B=opponent_real_B, beta=beta) - rewards(
        player_B=player_generated_B, opponent_B=opponent_generated_B, beta=beta
    )
    if kind == "hinge":
        return F.relu(1 - margins_B)
    return -F.logsigmoid(margins_B)


def first_loss(kind: Literal["logistic", "hinge"]) -> float:
    """What the loss is while the player is its opponent: l(0)."""
    return 1.0 if kind == "hinge" else LOG_2


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
