"""The data of a training: sequences, the opponent's scores of them, and the batch of each step, prepared in advance.

Shapes: N items of a training, B of a batch, b of a micro-batch; P responses to each item's prompt.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from spin_core.data.batches import deal, deal_padded
from spin_core.data.files.token_file import TokenArray, TokenFile
from spin_core.data.sequences import Ints, Sequences
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
    """All prompts with their responses, on disk, and the reference's scores."""

    tokens: TokenFile
    rows_N: Ints
    """The rows of `tokens` that are items: pairs, or for loss `sft` single responses."""
    reference_2N: Tensor | None
    """The reference's log-probabilities of real and generated responses. None for loss `sft`, which has no opponent."""

    @property
    def sides(self) -> int:
        """P, the number of responses to a prompt."""
        return self.tokens.sides

    @property
    def items(self) -> int:
        """The number of items."""
        return len(self.rows_N)

    def tokens_of_items(self) -> Ints:
        """The tokens of each item, (N,), its prompt counted once for each response."""
        lengths_NC = self.tokens.lengths_NC[self.rows_N]
        tokens_N: Ints = lengths_NC.sum(axis=1, dtype=np.int64) + lengths_NC[:, 0] * (self.sides - 1)
        return tokens_N

    def prompts(self) -> Iterator[TokenArray]:
        """The token ids of each item's prompt."""
        return self.tokens.prompts(self.rows_N)

    def sequences(self, chosen: Ints) -> Sequences:
        """The sequences of the chosen items by side: all with real responses, those with generated ones, …"""
        return self.tokens.sequences(self.rows_N[chosen])

    def reference(self, chosen: Ints) -> Tensor | None:
        """The reference's log-probabilities of the chosen items, (2, B): of their real and generated responses."""
        return None if self.reference_2N is None else self.reference_2N[:, torch.from_numpy(chosen)]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass computes."""

    chosen_b: Tensor
    """Indices of its items in the batch."""
    rows: Rows
    idle: bool
    """It has no item of its own, but all ranks must make the same number of passes: its loss has weight 0."""


class MicroBatches:
    """The micro-batches of a batch, each read and laid out when its turn comes."""

    def __init__(self, shares: Sequence[Ints], lay_out: Callable[[Ints], MicroBatch]) -> None:
        """Take the items of each micro-batch, and the function that lays them out."""
        self._shares, self._lay_out = shares, lay_out

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[MicroBatch]:
        return map(self._lay_out, self._shares)


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    micro_batches: MicroBatches | list[MicroBatch]
    """This rank's share of the items."""
    reference_PB: Tensor | None
    tokens_PB: Ints
    """The number of tokens of each response."""
    tokens: int
    """Tokens of all prompts and responses on all ranks, prompts counted once a response, padding not counted."""
    max_tokens: int
    """The most tokens of a micro-batch, unless one item has more."""


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
    lengths_BC = data.tokens.lengths_NC[data.rows_N[items]].astype(np.int64)
    prompts_B, responses_PB = lengths_BC[:, 0], lengths_BC[:, 1:].T
    if packed:
        shared_B = prompts_B if prefix_sharing else prompts_B * data.sides
        shares = deal(shared_B + responses_PB.sum(axis=0), ranks.size, max_tokens)
    else:
        shares = deal_padded(prompts_B + responses_PB.max(axis=0), data.sides, ranks.size, max_tokens)
    lay_out = partial(_micro_batch, data, items, packed=packed, prefix_sharing=prefix_sharing)
    tokens = int((prompts_B + responses_PB).sum())
    return Batch(MicroBatches(shares[ranks.rank], lay_out), data.reference(items), responses_PB, tokens, max_tokens)


def _micro_batch(data: TrainData, items: Ints, chosen: Ints, *, packed: bool, prefix_sharing: bool) -> MicroBatch:
    """Lay out some items of a batch, given by their places in it."""
    idle = len(chosen) == 0
    chosen_b = np.zeros(1, np.int64) if idle else chosen
    sequences = data.sequences(items[chosen_b])
    all_S = np.arange(len(sequences))
    if packed:
        rows = packed_rows(sequences, all_S, np.tile(chosen_b, data.sides) if prefix_sharing else all_S)
    else:
        rows = padded_rows(sequences, all_S)
    return MicroBatch(torch.from_numpy(chosen_b), rows, idle)


def batches(lay_out: Callable[[int], Batch], first: int, last: int, *, ahead: bool) -> Iterator[Batch]:
    """The batches of steps `first` to `last` - 1, with `ahead` each laid out while the step before it computes."""

    def make(step: int) -> Batch:
        batch = lay_out(step)
        return replace(batch, micro_batches=list(batch.micro_batches))

    return prefetch(make, first, last) if ahead else (make(step) for step in range(first, last))


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


def read_data(job: TrainJob, folder: Path, ranks: Ranks | None = None) -> TrainData:
    """The job's pairs and their scores, or for loss `sft` its prompts and real responses.

    Args:
        job: the training.
        folder: gets the token ids, written by the first rank, and has them until the training ends.
        ranks: the ranks that train together; one by default.

    Raises:
        DataError: nothing is left to train on.
    """
    ranks = ranks or Ranks()
    if job.config.loss == "sft":
        assert job.prompts is not None, "loss sft trains on prompts"
        path, names = job.prompts.path / "train.parquet", ["prompt_ids", "response_ids"]
        reference_2N = None
    else:
        assert job.pairs is not None, f"loss {job.config.loss} trains on pairs"
        assert job.scores is not None, f"loss {job.config.loss} needs the opponent's scores"
        assert (job.scores.pairs, job.scores.opponent) == (job.pairs.digest, job.start.digest), "scores of other pairs"
        objective = objective_of(job.config, job.t)
        path = job.pairs.path / "pairs.parquet"
        names = ["prompt_ids", "real_ids", "generated_ids", "initial_ids"][: 1 + objective.sides]
        reference_2N = objective.read_reference(job.scores.path / "logps.parquet")
    if ranks.first:
        TokenFile.write(folder, path, *names)
    ranks.wait()
    tokens = TokenFile(folder)
    assert reference_2N is None or reference_2N.shape == (2, len(tokens)), "scores and pairs have the same rows"
    rows_N = np.arange(len(tokens))
    if job.share is not None:
        rows_N = np.flatnonzero(in_share(tokens.prompts(rows_N), job.share, job.held_out_seed))
        reference_2N = None if reference_2N is None else reference_2N[:, torch.from_numpy(rows_N)]
    if len(rows_N) == 0:
        raise DataError(
            "nothing is left to train on: see the counts of dropped rows, and loosen `pairs` or add prompts"
        )
    return TrainData(tokens, rows_N, reference_2N)
