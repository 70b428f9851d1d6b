"""Rows of one file, in parts, so that memory does not grow with the number of rows."""

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from spin_core.data.files.csv_rows import read_csv
from spin_core.data.files.json_rows import read_json
from spin_core.data.files.opening import FORMATS, count_lines, file_kind
from spin_core.data.files.parquet_rows import read_parquet
from spin_core.data.files.rows import Rows
from spin_core.errors import DataError

PART = 1024
"""The most rows that are read at a time."""


def read_parts(path: Path, wanted: Collection[str] | None = None, split: str = "train") -> Iterator[Rows]:
    """The rows of one file, in the format that its suffix names.

    Args:
        path: the file.
        wanted: names of columns with a meaning. The others of a Parquet file are not read; None reads all.
        split: the key to take if a JSON file is one object with several lists of rows.

    Raises:
        DataError: the file is in no format that can be read, or is damaged.
    """
    kind = file_kind(path)
    if kind is None:
        suffixes = ", ".join(FORMATS)
        raise DataError(
            f"{path} is in no format that can be read: give it one of the suffixes {suffixes}; "
            "the text formats may be compressed, .gz, .zst or .bz2"
        )
    if kind.format == "parquet":
        yield from read_parquet(path, wanted, PART)
        return
    rows = read_csv(path, kind, wanted) if kind.format == "csv" else read_json(path, kind, wanted, split)
    # A JSON document is read whole; it does not say how many rows it has.
    total = 0 if kind.suffix == ".json" else count_lines(path)
    first = 1
    while part := list(islice(rows, PART)):
        yield Rows(part, str(path), first, total=total)
        first += len(part)
