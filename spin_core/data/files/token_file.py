"""Token ids on disk, from which any rows are read: memory does not grow with their number.

A folder with two files: `ids.bin` has the token ids of all rows end to end as int32, the columns of a row one after
another, and `lengths.npy` the number of tokens of each column. Ranks of one machine that open the same folder share the
machine's file cache.

Shapes: N rows, C columns, S sequences.
"""

import os
import weakref
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from spin_core.data.sequences import Ints, Sequences, no_prompt_tokens, token_counts, token_ids_in

_ROWS = 4096
"""Rows that are in memory while files are written or read through."""

TokenArray = npt.NDArray[np.int32]

_NOTHING = np.zeros(0, np.int32)


class TokenFile:
    """The token ids of N rows. The first column is the prompt, each other one a response to it."""

    def __init__(self, folder: Path) -> None:
        """Open what `write` has written. The number of tokens of each row is in memory, the token ids are not."""
        self.lengths_NC: npt.NDArray[np.int32] = np.load(folder / "lengths.npy", allow_pickle=False)
        """Tokens of each column."""
        totals_N = self.lengths_NC.sum(axis=1, dtype=np.int64)
        self._starts_N = np.cumsum(totals_N) - totals_N
        self._file = os.open(folder / "ids.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def write(cls, folder: Path, table: Path, *columns: str) -> Self:
        """Write columns of a Parquet file that hold lists of token ids, and open the result.

        Raises:
            DataError: a prompt has no token. The response's first token is predicted from the prompt's last one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lengths: list[npt.NDArray[np.int32]] = [np.zeros((0, len(columns)), np.int32)]
        with pq.ParquetFile(table) as source, (folder / "ids.bin").open("wb") as out:
            for batch in source.iter_batches(_ROWS, columns=list(columns)):
                parts = [batch.column(name) for name in columns]
                lengths.append(np.stack([token_counts(part) for part in parts], axis=1).astype(np.int32))
                by_row = zip(*(token_ids_in(part) for part in parts), strict=True)
                np.concatenate([_NOTHING, *chain.from_iterable(by_row)]).tofile(out)
        lengths_NC = np.concatenate(lengths)
        if len(lengths_NC) and lengths_NC[:, 0].min() == 0:
            raise no_prompt_tokens(int(lengths_NC[:, 0].argmin()))
        np.save(folder / "lengths.npy", lengths_NC)
        return cls(folder)

    def __len__(self) -> int:
        return len(self.lengths_NC)

    @property
    def sides(self) -> int:
        """The number of responses to each prompt."""
        return int(self.lengths_NC.shape[1]) - 1

    def read(self, row: int) -> list[TokenArray]:
        """The token ids of a row: for each column an array."""
        lengths_C = self.lengths_NC[row]
        data = os.pread(self._file, int(lengths_C.sum()) * 4, int(self._starts_N[row]) * 4)
        return np.split(np.frombuffer(data, np.int32), np.cumsum(lengths_C)[:-1])

    def prompts(self, rows: Ints) -> Iterator[TokenArray]:
        """The prompts of some rows, one at a time."""
        for row in rows:
            size, start = int(self.lengths_NC[row, 0]) * 4, int(self._starts_N[row]) * 4
            yield np.frombuffer(os.pread(self._file, size, start), np.int32)

    def sequences(self, rows: Ints) -> Sequences:
        """The prompts of some rows with each response: all first responses, all second ones, and so on."""
        columns = list(zip(*(self.read(row) for row in rows), strict=True))
        prompts, responses = columns[0], columns[1:]
        return Sequences.of(prompts * len(responses), list(chain.from_iterable(responses)))

    def chosen_sequences(self, rows_S: Ints, columns_S: Ints) -> tuple[list[TokenArray], list[TokenArray]]:
        """The prompts and the responses of S sequences, given by their rows and their columns (from 1)."""
        parts = [self.read(row) for row in rows_S]
        return [part[0] for part in parts], [part[column] for part, column in zip(parts, columns_S, strict=True)]
