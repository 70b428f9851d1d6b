"""Token sequences in memory, and how they are cut into batches and micro-batches.

A micro-batch is what one forward and backward pass holds. How a batch is cut never changes the loss: losses are
means over the batch's pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from spin_core.errors import DataError

Ints = npt.NDArray[np.int64]

TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]

ALIKE = 0.9
"""Items of at least so much of the longest one's length share a micro-batch. Measured: a fifth of a step's time."""

WORTH_A_PASS = 1 / 8
"""The part of the token budget that a micro-batch fills before it may end early."""


@dataclass(frozen=True)
class Sequences:
    """S sequences of prompt and response, end to end in one flat array."""

    tokens: Ints
    """Token ids of all sequences, (sum of lengths,)."""

    starts_S: Ints
    """Where each begins in `tokens`."""

    prompts_S: Ints
    """Prompt tokens of each."""

    lengths_S: Ints
    """Tokens of each, prompt and response."""

    @classmethod
    def of(cls, prompt_ids: Sequence[TokenIds], response_ids: Sequence[TokenIds]) -> "Sequences":
        """From lists of token ids. A prompt needs a token, since the response's first token is predicted from it."""
        prompts_S = np.fromiter((len(ids) for ids in prompt_ids), np.int64, len(prompt_ids))
        responses_S = np.fromiter((len(ids) for ids in response_ids), np.int64, len(response_ids))
        if len(prompts_S) and prompts_S.min() == 0:
            raise DataError(
                f"prompt {int(prompts_S.argmin())} has no tokens, so nothing predicts its response: "
                "drop it, or set chat.add_bos with a tokenizer that has a BOS token"
            )
        lengths_S = prompts_S + responses_S
        parts = [
            np.asarray(ids, dtype=np.int64)
            for pair in zip(prompt_ids, response_ids, strict=True)
            for ids in pair
            if len(ids)
        ]
        tokens = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return cls(tokens, np.cumsum(lengths_S) - lengths_S, prompts_S, lengths_S)

    def __len__(self) -> int:
        return len(self.lengths_S)


def read_token_ids(path: Path, *columns: str) -> list[list[npt.NDArray[np.int32]]]:
    """The columns of a Parquet file that hold lists of token ids, each as one array a row."""
    table = pq.read_table(path, columns=list(columns))
    result = []
    for name in columns:
        column = table[name].combine_chunks()
        ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        result.append(np.split(flat, ends[:-1]) if len(ends) else [])
    return result


def micro_batches(lengths_B: Ints, rows_each: int, max_tokens: int) -> Iterator[Ints]:
    """Cut items into micro-batches of at most `max_tokens` tokens, padding counted: indices, longest item first.

    An item takes `rows_each` rows, each as long as the longest item beside it; one that is longer than `max_tokens`
    goes alone. A micro-batch also ends where items become much shorter than its first, so that little is padding, but
    not before it is large enough to be worth a pass of its own. Equal lengths keep their order.
    """
    order = np.argsort(-lengths_B, kind="stable")
    falling_B = -lengths_B[order]
    start = 0
    while start < len(order):
        longest = max(1, -int(falling_B[start]))
        most = max(1, max_tokens // (longest * rows_each))
        least = max(1, int(max_tokens * WORTH_A_PASS) // (longest * rows_each))
        alike = int(np.searchsorted(falling_B, -longest * ALIKE, side="right")) - start
        end = start + min(most, max(least, alike))
        if len(order) - end < least / 2:
            end = min(len(order), start + most)
        yield order[start:end]
        start = end


def steps_in_epoch(items: int, batch_size: int) -> int:
    """Batches in a pass over the items. The last may be smaller."""
    return -(-items // batch_size)


class DataOrder:
    """Which items each step trains on: a seeded permutation an epoch, a function of the step alone."""

    def __init__(self, items: int | Ints, batch_size: int, seed: int) -> None:
        """`items`: how many there are, or the indices of those to train on."""
        self.items = np.arange(items) if isinstance(items, int) else items
        self.batch_size, self.seed = batch_size, seed
        assert len(self.items) > 0
        self.steps_in_epoch = steps_in_epoch(len(self.items), batch_size)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def batch(self, step: int) -> Ints:
        """Indices of the items that step `step` (from 0) trains on."""
        epoch, within = divmod(step, self.steps_in_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.items)
        return self._order[within * self.batch_size : (within + 1) * self.batch_size]
