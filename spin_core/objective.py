"""What the training loop asks of the loss: how many responses it sees, each pair's loss, and what it measures.

Shapes: B pairs (for `sft` prompts), P responses to each prompt, in the order real, generated, θ_0's.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spin_core.config import TrainConfig, at
from spin_core.losses import MarginLoss, first_loss, pair_metrics, spin_losses


@dataclass(frozen=True)
class Objective:
    """A loss with its settings as they are in one iteration.

    A batch's loss is the sum of its items' losses over `denominator`, in whatever parts and on whatever ranks they
    are computed.
    """

    kind: MarginLoss | Literal["sft"]
    beta: float

    @property
    def sides(self) -> int:
        """P: how many responses to a prompt it reads."""
        return 1 if self.kind == "sft" else 2

    @property
    def first_loss(self) -> float | None:
        """What the loss is while the player is its opponent; None where that fixes nothing."""
        return None if self.kind == "sft" else first_loss(self.kind)

    def losses(self, player_PB: Tensor, reference_PB: Tensor | None, tokens_PB: Tensor) -> Tensor:
        """Each item's share of the loss, (B,), differentiable.

        `player_PB` and `reference_PB` are log-probabilities, of the first two sides in the reference's case, which
        `sft` does without; `tokens_PB` counts the responses' tokens.
        """
        if self.kind == "sft":
            return -player_PB[0]
        assert reference_PB is not None
        return spin_losses(**by_name(player_PB, reference_PB), beta=self.beta, kind=self.kind)

    def denominator(self, tokens_PB: npt.NDArray[np.int64]) -> float:
        """What the sum of a whole batch's losses is divided by: its pairs, or for `sft` its real responses' tokens."""
        return float(tokens_PB[0].sum() if self.kind == "sft" else tokens_PB.shape[1])

    @torch.no_grad()
    def metrics(self, player_PB: Tensor, reference_PB: Tensor | None, tokens_PB: Tensor) -> dict[str, Tensor]:
        """Means over a whole batch as scalars, under the field's names: the loss first."""
        losses_B = self.losses(player_PB, reference_PB, tokens_PB)
        if self.kind == "sft":
            return {"loss": losses_B.sum() / tokens_PB[0].sum(), "logps/real": player_PB[0].mean()}
        assert reference_PB is not None
        return {"loss": losses_B.mean(), **pair_metrics(**by_name(player_PB, reference_PB), beta=self.beta)}


def objective_of(config: TrainConfig, t: int) -> Objective:
    """The configured loss, its schedules at their value in iteration `t`. θ_0's own training is iteration -1."""
    t = max(t, 0)
    assert config.loss in ("logistic", "hinge", "exponential", "correlation", "sft")
    return Objective(kind=config.loss, beta=at(config.beta, t))


def by_name(player_PB: Tensor, reference_PB: Tensor) -> dict[str, Tensor]:
    """The four log-probabilities of each pair, under the names that the losses take."""
    return {
        "player_real_B": player_PB[0],
        "player_generated_B": player_PB[1],
        "opponent_real_B": reference_PB[0],
        "opponent_generated_B": reference_PB[1],
    }
