"""Parquet files, read without pandas."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file as a table, with all columns or some.

    `pyarrow.parquet.read_table` uses pyarrow.dataset, which imports pandas. That takes 0.3 s, as long as all other
    imports of `spin leaderboard` or `spin samples` together.
    """
    with pq.ParquetFile(path) as file:
        return file.read(columns=None if columns is None else list(columns))
