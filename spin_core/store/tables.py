"""Parquet files, read without pandas."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file as a table, with all columns or some.

    `pyarrow.parquet.read_table` does the same by way of pyarrow.dataset, which imports pandas. That takes .3 s, as long
    as all else that `spin leaderboard` or `spin samples` imports.
    """
    with pq.ParquetFile(path) as file:
        return file.read(columns=None if columns is None else list(columns))
