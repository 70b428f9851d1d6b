"""One batch through the player: its gradient and its metrics.

Shapes: B items of a batch (pairs; for loss `sft` responses), P responses to each item's prompt, b items of a
micro-batch, S = P * b sequences of a micro-batch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from spin_core.models.packing import Rows
from spin_core.models.vocabulary_loss import ItemLosses
from spin_core.runtime.ranks import Ranks
from spin_core.training.objective import Objective
from spin_core.training.stepper import Stepper
from spin_core.training.train_data import Batch, MicroBatch

Scorer = Callable[[Rows], Tensor]
"""Log-probabilities of the responses in some rows, (S,)."""


class BatchResult(NamedTuple):
    """What one batch measured, all float32 scalars on the device."""

    metrics: dict[str, Tensor]
    """Under the names of `metrics.jsonl`, the loss first."""
    distance: Tensor | None
    """`Objective.distance` of player and opponent; None where the reference is not the opponent."""


def forward_backward(
    batch: Batch,
    objective: Objective,
    stepper: Stepper,
    world: Ranks,
    device: torch.device,
    opponent: Scorer | None = None,
) -> BatchResult:
    """Leave the gradient of the batch's loss with the stepper, and measure the batch.

    All responses to a prompt are in one forward pass, since the loss joins them. The loss is a sum over items divided
    by a number of the whole batch, so each micro-batch, on whichever rank, adds its share of that sum.

    Args:
        batch: The batch; its micro-batches are this rank's.
        objective: The loss.
        stepper: Holds the player, and gets the gradient.
        world: The ranks that share the batch.
        device: Where the player is.
        opponent: Scores the reference now; without it the batch's own scores are the reference.
    """
    tokens_PB = torch.from_numpy(batch.tokens_PB).to(device)
    player_PB = torch.zeros(tokens_PB.shape, dtype=torch.float32, device=device)
    reference_PB = None if batch.reference_PB is None else batch.reference_PB.to(device)
    if opponent is not None and reference_PB is not None:
        reference_PB = torch.zeros_like(reference_PB)
    denominator = objective.denominator(batch.tokens_PB)
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        rows, chosen_b = micro_batch.rows.to(device), micro_batch.chosen_b.to(device)
        if opponent is not None and reference_PB is not None:
            _score(opponent, rows, micro_batch, chosen_b, reference_PB)
        losses = partial(
            _weighted_losses,
            objective=objective,
            weight=0 if micro_batch.idle else 1 / denominator,
            reference_Pb=None if reference_PB is None else reference_PB[:, chosen_b],
            tokens_Pb=tokens_PB[:, chosen_b],
        )
        tokens_Pb = batch.tokens_PB[:, micro_batch.chosen_b.numpy()]
        loss, logps_S = stepper.loss(rows, ItemLosses(tokens_Pb, losses))
        stepper.backward(loss, last=number == len(batch.micro_batches))
        if not micro_batch.idle:
            player_PB[:, chosen_b] = logps_S.view(len(tokens_PB), -1)
    # Each rank has filled in its own items, and zeros elsewhere.
    world.sum(player_PB)
    if opponent is not None and reference_PB is not None:
        world.sum(reference_PB)
    metrics = objective.metrics(player_PB, reference_PB, tokens_PB)
    distance = None if reference_PB is None else objective.distance(player_PB, reference_PB, tokens_PB)
    return BatchResult(
        {name: value.float() for name, value in metrics.items()}, None if distance is None else distance.float()
    )


@torch.no_grad()
def _score(opponent: Scorer, rows: Rows, micro_batch: MicroBatch, chosen_b: Tensor, reference_PB: Tensor) -> None:
    """Write the opponent's log-probabilities of a micro-batch into `reference_PB`, (2, B).

    An idle micro-batch is scored too: where weights are divided among ranks, every rank must help to gather them.
    """
    scores_Pb = opponent(rows).view(-1, len(chosen_b))
    if not micro_batch.idle:
        reference_PB[:, chosen_b] = scores_Pb[: len(reference_PB)]


def _weighted_losses(
    player_Pb: Tensor,
    items: slice,
    *,
    objective: Objective,
    weight: float,
    reference_Pb: Tensor | None,
    tokens_Pb: Tensor,
) -> Tensor:
    """What some items of a micro-batch add to the batch's loss, (b,)."""
    reference = None if reference_Pb is None else reference_Pb[:, items]
    return objective.losses(player_Pb, reference, tokens_Pb[:, items]) * weight
