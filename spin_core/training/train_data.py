"""What a training reads: its sequences, the opponent's view of them, and the batch of each step, laid out ahead.

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

from spin_core.data.batches import deal, deal_padded
from spin_core.data.sequences import Ints, Sequences, read_token_ids
from spin_core.errors import DataError
from spin_core.models.packing import Rows, packed_rows, padded_rows
from spin_core.runtime.ranks import Ranks
from spin_core.store.jobs import TrainJob
from spin_core.training.budget import in_share
from spin_core.training.objective import objective_of

T = TypeVar("T")

AHEAD = 2
"""How many steps' tensors are laid out ahead of the one that computes."""


@dataclass(frozen=True)
class TrainData:
    """All real responses, all generated ones and, for T-SPIN, all of θ_0's; and what they are measured against."""

    sequences: Sequences
    reference_PB: Tensor | None
    """None for loss `sft`, which has no opponent."""
    sides: int
    """P."""

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
class Part:
    """A micro-batch."""

    chosen_b: Tensor
    """Which of the batch's items."""
    rows: Rows
    idle: bool
    """It is here only because other ranks have more to do: its loss counts nothing."""


@dataclass(frozen=True)
class Batch:
    """What one step trains on; `parts` is this rank's share."""

    parts: list[Part]
    reference_PB: Tensor | None
    tokens_PB: Ints
    """Tokens of each response."""
    tokens: int
    """Of all ranks' prompts and responses, as if none were shared or padded."""


def batch_of(
    data: TrainData, items: Ints, ranks: Ranks, max_tokens: int, *, packed: bool, prefix_sharing: bool
) -> Batch:
    """Lay out one batch. The same on every rank, but for `parts`."""
    sequences_PB = data.rows(items)
    lengths_PB, prompts_PB = data.sequences.lengths_S[sequences_PB], data.sequences.prompts_S[sequences_PB]
    if packed:
        prompts_B = prompts_PB[0] if prefix_sharing else prompts_PB.sum(axis=0)
        shares = deal(prompts_B + (lengths_PB - prompts_PB).sum(axis=0), ranks.size, max_tokens)
    else:
        shares = deal_padded(lengths_PB.max(axis=0), data.sides, ranks.size, max_tokens)
    parts = []
    for chosen in shares[ranks.rank]:
        idle = len(chosen) == 0
        chosen_b = np.zeros(1, np.int64) if idle else chosen
        chosen_S = sequences_PB[:, chosen_b].reshape(-1)
        if packed:
            group_S = np.tile(chosen_b, data.sides) if prefix_sharing else np.arange(len(chosen_S))
            rows = packed_rows(data.sequences, chosen_S, group_S)
        else:
            rows = padded_rows(data.sequences, chosen_S)
        parts.append(Part(torch.from_numpy(chosen_b), rows, idle))
    return Batch(parts, data.reference(items), lengths_PB - prompts_PB, int(lengths_PB.sum()))


def ahead(make: Callable[[int], T], first: int, last: int, depth: int = AHEAD) -> Iterator[T]:
    """`make(first)`, …, `make(last - 1)`, each made by another thread while the ones before it are in use."""
    made: queue.Queue[T | BaseException] = queue.Queue(depth)
    over = threading.Event()

    def put(value: T | BaseException) -> None:
        while not over.is_set():
            try:
                made.put(value, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for index in range(first, last):
                if over.is_set():
                    return
                put(make(index))
        except BaseException as error:  # it is raised again where the value is missed
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
        over.set()
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
