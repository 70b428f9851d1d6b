"""Parquet files, read without pandas."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.errors import DamagedArtifact, first_line


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file as a table, with all columns or some.

    `pyarrow.parquet.read_table` uses pyarrow.dataset, which imports pandas. That takes 0.3 s, as long as all other
    imports of `spin leaderboard` or `spin samples` together.

    Raises:
        DamagedArtifact: The file is missing, or is not a Parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({first_line(error)})"
        raise DamagedArtifact(
            f"{path} is {reason}: restore it from a copy, or remove {path.parent} and run the lineage again, which "
            "makes it again"
        ) from error
