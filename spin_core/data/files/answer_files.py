"""Prompts and answers on disk, read a part at a time: memory does not grow with their number."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data.files.digests import Digests, digests_of
from spin_core.data.sequences import Ints

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("answer", pa.int32()),  # its number among the answers to this prompt
        ("opponent", pa.int32()),  # the version t that gave it
        ("response", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),  # `stop` or `length`
    ]
)
"""The columns of a shard of answers."""

_ROWS = 4096
"""Rows of a file that are in memory while it is read through."""


class RowReader:
    """Some columns of Parquet files with the same columns. Rows are numbered through all files."""

    def __init__(self, paths: Sequence[Path], columns: Sequence[str]) -> None:
        """Read how many rows there are; no row is read yet."""
        self._paths, self._columns = list(paths), list(columns)
        self._groups: list[tuple[Path, int]] = []
        """Each row group: its file, and its number there."""
        rows = []
        for path in paths:
            metadata = pq.read_metadata(path)
            self._groups += [(path, group) for group in range(metadata.num_row_groups)]
            rows += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._begins = np.cumsum([0, *rows], dtype=np.int64)
        self._in_memory: dict[int, pa.Table] = {}

    def __len__(self) -> int:
        return int(self._begins[-1])

    def take(self, rows: Ints) -> pa.Table:
        """Some rows, in this order; a row of nulls for -1."""
        is_row = rows >= 0
        group_of_row = np.searchsorted(self._begins, rows[is_row], side="right") - 1
        needed = np.unique(group_of_row)
        # Rows are mostly taken in order, so the next call needs the last row group of this one.
        self._in_memory = {
            group: self._in_memory[group] if group in self._in_memory else self._read(group)
            for group in needed.tolist()
        }
        tables = [self._in_memory[group] for group in needed.tolist()] or [self._empty()]
        begins_in_memory = np.cumsum([0, *map(len, tables)])
        at = np.zeros(len(rows), np.int64)
        at[is_row] = begins_in_memory[np.searchsorted(needed, group_of_row)] + rows[is_row] - self._begins[group_of_row]
        return pa.concat_tables(tables).take(pa.array(at, pa.int64(), mask=~is_row))

    def tables(self) -> Iterator[pa.Table]:
        """All rows, some at a time."""
        for path in self._paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS, columns=self._columns):
                    yield pa.Table.from_batches([batch])

    def _empty(self) -> pa.Table:
        """A table without rows; of no files at all, with the columns of answers."""
        schema = pq.read_schema(self._paths[0]) if self._paths else SCHEMA
        return schema.empty_table().select(self._columns)

    def _read(self, number: int) -> pa.Table:
        path, group = self._groups[number]
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=self._columns)


def ids_in(paths: Sequence[Path]) -> Iterator[str]:
    """The column `id` of all rows."""
    for table in RowReader(paths, ["id"]).tables():
        yield from table["id"].to_pylist()


def id_digests(paths: Sequence[Path]) -> Digests:
    """A digest of the id of each row, (N,)."""
    return digests_of(id.encode() for id in ids_in(paths))


def shards_in(folder: Path) -> list[Path]:
    """The files of a generation, in order."""
    return sorted(folder.glob("shard-*.parquet"))
