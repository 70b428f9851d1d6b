"""Rows of Parquet files and of other tables of Arrow: only the columns that something uses are read."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data.files.rows import Rows
from spin_core.data.formats.values import Row
from spin_core.errors import DataError, first_line

# What Arrow raises for a damaged file, and what Python raises for a value that it has no type for.
_DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, LookupError)


def read_parquet(path: Path, wanted: Collection[str] | None, size: int) -> Iterator[Rows]:
    """The rows of a Parquet file, at most `size` at a time.

    Args:
        path: the file.
        wanted: names of the columns to read; None reads all.
        size: the most rows at a time.

    Raises:
        DataError: the file is damaged, or a column that is read holds values without a type in Python.
    """
    try:
        file = pq.ParquetFile(path)
        names = list(file.schema_arrow.names)
    except _DAMAGE as error:
        raise DataError(f"{path} is not a Parquet file ({first_line(error)}): write it again") from error
    with file:
        columns, unread = choose_columns(names, wanted, str(path))
        number = 1
        try:
            for batch in file.iter_batches(batch_size=size, columns=columns):
                rows = batch_rows(batch, str(path)) if columns else [{} for _ in range(batch.num_rows)]
                yield Rows(rows, str(path), number, unread, file.metadata.num_rows)
                number += batch.num_rows
        except _DAMAGE as error:
            raise DataError(
                f"{path} is damaged at or after row {number} ({first_line(error)}): write it again"
            ) from error


def choose_columns(names: Sequence[str], wanted: Collection[str] | None, place: str) -> tuple[list[str], list[str]]:
    """The columns to read, and those not to read. Raises `DataError` if two have one name."""
    doubled = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubled:
        raise DataError(f"{place} has two columns named {doubled[0]}: rename one of them and write it again")
    columns = [name for name in names if wanted is None or name in wanted]
    return columns, [name for name in names if name not in columns]


def batch_rows(batch: pa.RecordBatch | pa.Table, place: str) -> list[Row]:
    """The rows of a batch. Raises `DataError` with the column that holds values without a type in Python."""
    columns: dict[str, list[Any]] = {}
    for name in batch.schema.names:
        try:
            columns[name] = batch.column(name).to_pylist()
        except _DAMAGE as error:
            raise DataError(
                f"{place}: the column {name} cannot be read ({first_line(error)}): write it as text, or remove it"
            ) from error
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
