"""The data of a training: sequences, the opponent's scores of them, and the batch of each step, prepared in advance.

Shapes: P responses to each of the items' prompts; B items of a batch, b of a micro-batch.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from spin_core.config.train import TrainConfig
from spin_core.data.batches import DataOrder, deal, deal_padded
from spin_core.data.sequences import Ints, Sequences, read_token_ids
from spin_core.errors import DataError
from spin_core.models.packing import Rows, packed_rows, padded_rows
from spin_core.runtime.ranks import Ranks
from spin_core.store.jobs import TrainJob
from spin_core.training.budget import in_share
from spin_core.training.objective import objective_of

_T = TypeVar("_T")

_AHEAD = 2
"""How many batches wait for their step."""


@dataclass(frozen=True)
class TrainData:
    """All prompts with their responses, and the reference's scores.

    The sequences are ordered by side: all real responses, all generated ones, and for T-SPIN all of θ_0's.
    """

    sequences: Sequences
    reference_PB: Tensor | None
    """None for loss `sft`, which has no opponent."""
    sides: int
    """P, the number of responses to a prompt."""

    @property
    def items(self) -> int:
        """Prompts with their responses: pairs, or for loss `sft` single responses."""
        return len(self.sequences) // self.sides

    def rows(self, chosen: Ints) -> Ints:
        """The sequences of the chosen items, (P, B)."""
        return chosen + np.arange(self.sides)[:, None] * self.items

    def reference(self, chosen: Ints) -> Tensor | None:
        """The reference's log-probabilities of the chosen items, (2, B): of their real and generated responses."""
        return None if self.reference_PB is None else self.reference_PB[:, torch.from_numpy(chosen)]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass computes."""

    chosen_b: Tensor
    """Indices of its items in the batch."""
    rows: Rows
    idle: bool
    """It has no item of its own, but all ranks must make the same number of passes: its loss has weight 0."""


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    micro_batches: list[MicroBatch]
    """This rank's share of the items."""
    reference_PB: Tensor | None
    tokens_PB: Ints
    """The number of tokens of each response."""
    tokens: int
    """Tokens of all prompts and responses on all ranks, prompts counted once a response, padding not counted."""


def batch_of(
    data: TrainData, items: Ints, ranks: Ranks, max_tokens: int, *, packed: bool, prefix_sharing: bool
) -> Batch:
    """Lay out one batch: the same on every rank, except for `micro_batches`.

    Args:
        data: Everything that is trained on.
        items: The batch's items.
        ranks: This rank, and how many share the batch.
        max_tokens: The most tokens of a micro-batch, unless one item has more.
        packed: Rows without padding.
        prefix_sharing: Packed rows hold a prompt once for all its responses.
    """
    sequences_PB = data.rows(items)
    lengths_PB, prompts_PB = data.sequences.lengths_S[sequences_PB], data.sequences.prompts_S[sequences_PB]
    if packed:
        prompts_B = prompts_PB[0] if prefix_sharing else prompts_PB.sum(axis=0)
        shares = deal(prompts_B + (lengths_PB - prompts_PB).sum(axis=0), ranks.size, max_tokens)
    else:
        shares = deal_padded(lengths_PB.max(axis=0), data.sides, ranks.size, max_tokens)
    micro_batches = []
    for chosen in shares[ranks.rank]:
        idle = len(chosen) == 0
        chosen_b = np.zeros(1, np.int64) if idle else chosen
        chosen_S = sequences_PB[:, chosen_b].reshape(-1)
        if packed:
            group_S = np.tile(chosen_b, data.sides) if prefix_sharing else np.arange(len(chosen_S))
            rows = packed_rows(data.sequences, chosen_S, group_S)
        else:
            rows = padded_rows(data.sequences, chosen_S)
        micro_batches.append(MicroBatch(torch.from_numpy(chosen_b), rows, idle))
    return Batch(micro_batches, data.reference(items), lengths_PB - prompts_PB, int(lengths_PB.sum()))


def configured_batch(data: TrainData, items: Ints, ranks: Ranks, config: TrainConfig, packed: bool) -> Batch:
    """Lay out items as this training's configuration says."""
    return batch_of(
        data, items, ranks, config.micro_batch_tokens, packed=packed, prefix_sharing=config.speed.prefix_sharing
    )


def batches(
    data: TrainData, order: DataOrder, ranks: Ranks, config: TrainConfig, packed: bool, first: int, last: int
) -> Iterator[Batch]:
    """The batches of steps `first` to `last` - 1, each laid out while the step before it computes."""

    def make(step: int) -> Batch:
        return configured_batch(data, order.batch(step), ranks, config, packed)

    return prefetch(make, first, last) if config.speed.prefetch else (make(step) for step in range(first, last))


def prefetch(make: Callable[[int], _T], first: int, last: int, depth: int = _AHEAD) -> Iterator[_T]:
    """`make(first)`, …, `make(last - 1)`, made by another thread while earlier ones are in use.

    At most `depth` are waiting. An error of `make` is raised where its value is due. No thread is left when the
    iterator is closed.
    """
    made: queue.Queue[_T | BaseException] = queue.Queue(depth)
    closed = threading.Event()

    def put(value: _T | BaseException) -> None:
        while not closed.is_set():
            try:
                made.put(value, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for index in range(first, last):
                if closed.is_set():
                    return
                put(make(index))
        except BaseException as error:  # raised again where the value is due
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in range(first, last):
            value = made.get()
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        closed.set()
        thread.join()


def read_data(job: TrainJob) -> TrainData:
    """The job's pairs and their scores, or for loss `sft` its prompts and real responses."""
    if job.config.loss == "sft":
        assert job.prompts is not None, "loss sft trains on prompts"
        prompt_ids, real_ids = read_token_ids(job.prompts.path / "train.parquet", "prompt_ids", "response_ids")
        if job.share is not None:
            kept_N = in_share(prompt_ids, job.share, job.held_out_seed)
            prompt_ids, real_ids = (list(compress(ids, kept_N)) for ids in (prompt_ids, real_ids))
        data = TrainData(Sequences.of(prompt_ids, real_ids), None, 1)
    else:
        assert job.pairs is not None, f"loss {job.config.loss} trains on pairs"
        assert job.scores is not None, f"loss {job.config.loss} needs the opponent's scores"
        assert (job.scores.pairs, job.scores.opponent) == (job.pairs.digest, job.start.digest), "scores of other pairs"
        objective = objective_of(job.config, job.t)
        names = ("prompt_ids", "real_ids", "generated_ids", "initial_ids")[: 1 + objective.sides]
        prompt_ids, *responses = read_token_ids(job.pairs.path / "pairs.parquet", *names)
        reference_PB = objective.read_reference(job.scores.path / "logps.parquet")
        if job.share is not None:
            kept_N = in_share(prompt_ids, job.share, job.held_out_seed)
            prompt_ids, *responses = (list(compress(ids, kept_N)) for ids in (prompt_ids, *responses))
            reference_PB = reference_PB[:, torch.from_numpy(kept_N)]
        sequences = Sequences.of(prompt_ids * objective.sides, [ids for side in responses for ids in side])
        data = TrainData(sequences, reference_PB, objective.sides)
        assert reference_PB.shape == (2, len(prompt_ids)), "scores and pairs have the same rows"
    if data.items == 0:
        raise DataError(
            "nothing is left to train on: see the counts of dropped rows, and loosen `pairs` or add prompts"
        )
    return data
