"""Token ids in memory: sequences of prompt and response end to end in one array, and columns of Parquet files.

Shapes: S sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin_core.errors import DataError

Ints = npt.NDArray[np.int64]

TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Sequences:
    """S sequences of prompt and response, end to end in one flat array."""

    tokens: Ints
    """Token ids of all sequences, (sum of lengths,)."""

    starts_S: Ints
    """Where each sequence begins in `tokens`."""

    prompts_S: Ints
    """Prompt tokens of each sequence."""

    lengths_S: Ints
    """Tokens of each sequence, prompt and response."""

    @classmethod
    def of(cls, prompt_ids: Sequence[TokenIds], response_ids: Sequence[TokenIds]) -> "Sequences":
        """Lay lists of token ids end to end.

        Raises:
            DataError: a prompt has no token. The response's first token is predicted from the prompt's last one.
        """
        prompts_S = np.fromiter((len(ids) for ids in prompt_ids), np.int64, len(prompt_ids))
        responses_S = np.fromiter((len(ids) for ids in response_ids), np.int64, len(response_ids))
        if len(prompts_S) and prompts_S.min() == 0:
            raise no_prompt_tokens(int(prompts_S.argmin()))
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


def no_prompt_tokens(row: int) -> DataError:
    """The error to raise for a prompt without a token."""
    return DataError(
        f"prompt {row} has no tokens, so nothing predicts its response: "
        "drop it, or set chat.add_bos with a tokenizer that has a BOS token"
    )


def read_token_ids(path: Path, *columns: str) -> list[list[npt.NDArray[np.int32]]]:
    """The columns of a Parquet file that hold lists of token ids: for each column one array for each row."""
    table = pq.read_table(path, columns=list(columns))
    result = []
    for name in columns:
        column = table[name].combine_chunks()
        ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        result.append(np.split(flat, ends[:-1]) if len(ends) else [])
    return result


def token_ids_in(column: pa.ChunkedArray | pa.Array) -> Iterator[npt.NDArray[np.int32]]:
    """The token ids of each row of a column in memory, as views: nothing is copied."""
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        # `to_numpy` would import pandas, which takes longer than all else that `spin samples` does.
        values = np.asarray(np.from_dlpack(chunk.values), np.int32)
        offsets = np.from_dlpack(chunk.offsets)
        for begin, end in pairwise(offsets):
            yield values[begin:end]


def token_counts(column: pa.ChunkedArray | pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How many tokens each row of a column has, (rows,)."""
    counts: Sequence[int] = pc.list_value_length(column).to_numpy()
    return np.asarray(counts, dtype=np.int64)
