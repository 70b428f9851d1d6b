"""The loss as the training loop sees it: how many responses it reads, each pair's loss, and what it measures.

Shapes: B pairs (for `sft`, prompts), P responses to each prompt, in the order real, generated, θ_0's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor

from spin_core.config.base import at
from spin_core.config.train import Loss, TrainConfig
from spin_core.training.losses import (
    first_loss,
    history_losses,
    length_correlation,
    mixed_reference,
    nll_losses,
    pair_metrics,
    rewards,
    space_losses,
    spin_losses,
    t_spin_losses,
)


@dataclass(frozen=True)
class Objective:
    """A loss with its settings as they are in one iteration.

    A batch's loss is the sum of its items' losses divided by `denominator`. Both follow from the whole batch, so the
    loss does not depend on how items are divided into micro-batches and among ranks.
    """

    kind: Loss
    beta: float
    nll_weight: float = 0.0
    anchor: float = 0.0
    """Weight of θ_0 in the reference, alpha-SPIN's alpha; 0 where the opponent is θ_0."""
    history_weight: float = 0.0
    """Weight of T-SPIN's second term; 0 where the opponent is θ_0."""
    space_mu: float = 1.0

    @property
    def sides(self) -> int:
        """P, the number of responses to a prompt that the loss reads."""
        if self.kind == "sft":
            return 1
        return 3 if self.history_weight else 2

    @property
    def first_loss(self) -> float | None:
        """The loss while the player equals its opponent, without the `nll` term; None where it has no fixed value."""
        if self.kind == "sft" or self.kind == "t-spin" or self.anchor:  # noqa: PLR1714 (mypy narrows no `in`)
            return None
        return first_loss(self.kind, self.space_mu)

    def distance(self, player_PB: Tensor, reference_PB: Tensor, tokens_PB: Tensor) -> Tensor | None:
        """How far the player is from its opponent: sum of |log p - log p_opponent| over all responses, by their tokens.

        In nats a token, a scalar; None where the reference is not the opponent.
        """
        if self.anchor:
            return None
        return (player_PB[:2] - reference_PB[:2]).abs().sum() / tokens_PB[:2].sum().clamp(min=1)

    def loss_without_nll(self, row: Mapping[str, float]) -> float:
        """The loss in a step's metrics without the `nll` term, to compare with `first_loss`."""
        return row["loss"] - self.nll_weight * row.get("nll", 0.0)

    def losses(self, player_PB: Tensor, reference_PB: Tensor | None, tokens_PB: Tensor) -> Tensor:
        """Each item's loss, (B,), differentiable.

        Args:
            player_PB: The player's log-probabilities of the responses.
            reference_PB: The reference's, (2, B): of real and generated responses. `sft` and T-SPIN need none.
            tokens_PB: The number of tokens of each response.
        """
        if self.kind == "sft":
            return -player_PB[0]
        losses_B = self._losses_without_nll(player_PB, reference_PB)
        if self.nll_weight:
            losses_B = losses_B + self.nll_weight * nll_losses(player_real_B=player_PB[0], tokens_B=tokens_PB[0])
        return losses_B

    def _losses_without_nll(self, player_PB: Tensor, reference_PB: Tensor | None) -> Tensor:
        if self.kind == "t-spin":
            return t_spin_losses(
                player_real_B=player_PB[0],
                player_generated_B=player_PB[1],
                player_initial_B=player_PB[2] if self.history_weight else None,
                beta=self.beta,
                history_weight=self.history_weight,
            )
        assert reference_PB is not None, f"loss {self.kind} needs a reference"
        if self.kind == "space":
            real_B, generated_B = rewards(player_B=player_PB[:2], opponent_B=reference_PB[:2], beta=self.beta)
            return space_losses(real_B=real_B, generated_B=generated_B, mu=self.space_mu)
        assert self.kind != "sft", "sft has no pairs"
        return spin_losses(**_by_name(player_PB, reference_PB), beta=self.beta, kind=self.kind)

    def denominator(self, tokens_PB: npt.NDArray[np.int64]) -> float:
        """The divisor of a batch's loss: its pairs, or for `sft` the tokens of its real responses."""
        return float(tokens_PB[0].sum() if self.kind == "sft" else tokens_PB.shape[1])

    @torch.no_grad()
    def metrics(self, player_PB: Tensor, reference_PB: Tensor | None, tokens_PB: Tensor) -> dict[str, Tensor]:
        """Means over a whole batch as scalars, under the field's names, the loss first.

        Rewards are measured against the reference for every loss, so that runs can be compared; T-SPIN without a
        reference takes beta log p as reward. A loss of several terms adds them, before they are weighted.
        """
        losses_B = self.losses(player_PB, reference_PB, tokens_PB)
        if self.kind == "sft":
            return {"loss": losses_B.sum() / tokens_PB[0].sum(), "logps/real": player_PB[0].mean()}
        against_PB = torch.zeros_like(player_PB) if reference_PB is None else reference_PB
        metrics = {"loss": losses_B.mean(), **pair_metrics(**_by_name(player_PB, against_PB), beta=self.beta)}
        real_B, generated_B = player_PB[:2] - against_PB[:2]
        longer_B = tokens_PB[0] - tokens_PB[1]
        metrics["length_correlation"] = length_correlation(margins_B=real_B - generated_B, longer_B=longer_B)
        if self.history_weight:
            history_B = history_losses(player_generated_B=player_PB[1], player_initial_B=player_PB[2], beta=self.beta)
            metrics |= {"logps/initial": player_PB[2].mean(), "history": history_B.mean()}
        if self.nll_weight:
            metrics["nll"] = nll_losses(player_real_B=player_PB[0], tokens_B=tokens_PB[0]).mean()
        return metrics

    def reference(self, opponent_PB: Tensor, initial_PB: Tensor | None = None) -> Tensor:
        """The reference's log-probabilities, (2, B): the opponent's, or those of its mixture with θ_0."""
        if not self.anchor:
            return opponent_PB
        assert initial_PB is not None, "an anchored reference needs θ_0's log-probabilities"
        return mixed_reference(opponent_B=opponent_PB, initial_B=initial_PB, anchor=self.anchor)

    def read_reference(self, path: Path) -> Tensor:
        """The reference from `logps.parquet`, (2, B) float32, in the pairs' order."""
        names = ["real_logps", "generated_logps"]
        if self.anchor:
            names += ["real_base_logps", "generated_base_logps"]
        table = pq.read_table(path, columns=names)
        logps_PB = torch.from_numpy(np.stack([table[name].to_numpy() for name in names]))
        return self.reference(logps_PB[:2], logps_PB[2:])


def objective_of(config: TrainConfig, t: int) -> Objective:
    """The configured loss with the values of its schedules in iteration `t`; -1 is θ_0's own training."""
    t = max(t, 0)
    return Objective(
        kind=config.loss,
        beta=at(config.beta, t),
        nll_weight=at(config.nll_weight, t) if config.loss != "sft" else 0.0,
        anchor=config.anchor_in(t),
        history_weight=config.history_weight_in(t),
        space_mu=at(config.space_mu, t),
    )


def _by_name(player_PB: Tensor, reference_PB: Tensor) -> dict[str, Tensor]:
    """The four log-probabilities of each pair as the losses' keyword arguments."""
    return {
        "player_real_B": player_PB[0],
        "player_generated_B": player_PB[1],
        "opponent_real_B": reference_PB[0],
        "opponent_generated_B": reference_PB[1],
    }
