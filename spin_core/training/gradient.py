"""One batch through the player: its gradient and its metrics.

Shapes: B items of a batch (pairs; for loss `sft` responses), P responses to each item's prompt, b items of a
micro-batch, S = P * b sequences of a micro-batch.
"""

import gc
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from spin_core.errors import ModelError, TryAgain
from spin_core.models.packing import Rows
from spin_core.models.vocabulary_loss import ItemLosses
from spin_core.runtime.memory.batch_limit import BatchLimit
from spin_core.runtime.memory.free import is_out_of_memory
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


def within_memory(
    compute: Callable[[Batch], BatchResult],
    batch: Batch,
    lay_out_again: Callable[[], Batch],
    limit: BatchLimit,
    discard_gradient: Callable[[], bool],
) -> BatchResult:
    """The result of a batch. When memory runs out, the batch begins again with half as many tokens in a pass.

    Args:
        compute: Leaves the batch's gradient with the stepper.
        batch: The batch. It is laid out again if that was done before memory ran out.
        lay_out_again: Returns the same batch with the limit's present size.
        limit: The most tokens of a pass.
        discard_gradient: See `Stepper.discard_gradient`.

    Raises:
        ModelError: There is not enough memory for one item at a time.
        TryAgain: The batch cannot begin again in this process; a new one continues from the last checkpoint.
    """
    while True:
        if batch.max_tokens > limit.size:
            batch = lay_out_again()
        try:
            return compute(batch)
        except (RuntimeError, MemoryError) as error:
            if limit.path is None or not is_out_of_memory(error):
                raise
            if not limit.halve(least=int(batch.tokens_PB.sum(axis=0).max())):
                raise ModelError(
                    "there is not enough memory to train on one pair at a time: set train.gradient_checkpointing, "
                    "train adapters with train.lora, or set train.speed.deepspeed to zero3-offload"
                ) from error
            if not discard_gradient():
                raise TryAgain(f"memory ran out: the next attempt has at most {limit.size} tokens in a pass") from error
        # Only here, where the error no longer holds the tensors of the pass that failed, can they be freed.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
