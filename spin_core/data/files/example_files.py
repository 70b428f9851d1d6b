"""Examples on disk: written in parts and chosen by row, so that memory does not grow with their number."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data.examples import Example
from spin_core.data.files.ids import Ids

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("messages", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)
"""The columns of phase `prompts`' files: the fields of `Example` that every example has."""

TOOLS = pa.field("tools", pa.string())
"""The schemas of the tools of each row as JSON, null without tools. Only where any row of the source has tools."""

SOURCE = pa.field("source", pa.string())
"""The name of the source of each row, where there are several."""

GROUP = 8192
"""Rows that are in memory before they are written together."""


class ExampleFile:
    """A Parquet file of examples. What is needed to choose among them stays in memory."""

    def __init__(self, path: Path, *, with_source: bool = False) -> None:
        """Begin the file.

        Args:
            path: the file.
            with_source: whether each row has the name of its source.
        """
        self.path = path
        self._ids = array("Q")
        self._is_cut = bytearray()
        self.has_tools = False
        """Whether any example has tools."""
        self.sources: list[str] = []
        """The name of each example's source; empty without `with_source`."""
        self.with_source = with_source
        self._writer = GroupWriter(path, (SCHEMA.append(SOURCE) if with_source else SCHEMA).append(TOOLS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Ids:
        """The id of each example."""
        return np.array(self._ids, np.uint64)

    @property
    def is_cut(self) -> npt.NDArray[np.bool_]:
        """Whether each response was cut."""
        return np.array(self._is_cut, bool)

    def add(self, examples: Sequence[Example], source: str = "") -> None:
        """Write examples of one source."""
        if not examples:
            return
        self._ids.extend(int(example.id, 16) for example in examples)
        self._is_cut.extend(example.finish_reason == "length" for example in examples)
        table = table_of(examples)
        if self.with_source:
            self.sources += [source] * len(examples)
            table = table.append_column(SOURCE, pa.array([source] * len(examples), pa.string()))
        tools = [example.tools or None for example in examples]
        self.has_tools |= any(tools)
        self._writer.add(table.append_column(TOOLS, pa.array(tools, pa.string())))

    def copy(self, rows: Iterable[int], target: Path) -> None:
        """Write a file with some of the rows, given in ascending order. No more can be added after this."""
        self._writer.close()
        with pq.ParquetFile(self.path) as file:
            fields = [field for field in file.schema_arrow if self.has_tools or field.name != TOOLS.name]
            writer = GroupWriter(target, pa.schema(fields))
            for group, members in groupby(rows, key=lambda row: row // GROUP):
                table = file.read_row_group(group, columns=[field.name for field in fields])
                writer.add(table.take(pa.array([row % GROUP for row in members], pa.int64())))
            writer.close()


def table_of(examples: Sequence[Example]) -> pa.Table:
    """Examples as a table, without their tools."""
    columns = ([getattr(example, field.name) for example in examples] for field in SCHEMA)
    return pa.table([pa.array(c, type=f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


class GroupWriter:
    """Writes tables as row groups of `GROUP` rows. A smaller file has the bytes of one that is written at once."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Begin the file."""
        self._file = pq.ParquetWriter(path, schema)
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Write a table, or keep it until there are enough rows."""
        self._waiting.append(table)
        while sum(map(len, self._waiting)) >= GROUP:
            whole = pa.concat_tables(self._waiting).combine_chunks()
            self._file.write_table(whole.slice(0, GROUP).combine_chunks())
            self._waiting = [whole.slice(GROUP)]

    def close(self) -> None:
        """Write what is left, and end the file."""
        if self._file.is_open:
            rest = pa.concat_tables(self._waiting).combine_chunks() if self._waiting else None
            if rest is not None and len(rest):
                self._file.write_table(rest)
            self._waiting = []
            self._file.close()
