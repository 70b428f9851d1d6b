"""The value of each item that a score is the mean of, and the file that keeps them.

A score's standard error comes from here: values of items -> `mean` -> the report's `Score` -> the tables. Two versions
are compared by the same file: `items.parquet` of both -> `statistics.paired` -> an interval of their difference.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.evaluation.exact import FORWARD_KL, INVALID_MASS, TOTAL_VARIATION
from spin_core.store.records import Score

Floats = npt.NDArray[np.float64]

Values = dict[str, Floats]
"""A score's value at each item, by the score's name; NaN where the item does not count."""

ITEMS = pa.schema([("task", pa.string()), ("item", pa.string()), ("value", pa.float64())])
"""`items.parquet` of a report; `task` is the score's name."""

LOWER_IS_BETTER = {
    "heldout_nll",
    "length_classifier",
    "text_classifier",
    "repeated_trigrams",
    "looping_share",
    "cut_share",
    "empty_share",
    TOTAL_VARIATION,
    INVALID_MASS,
    FORWARD_KL,
}

_NEITHER_IS_BETTER = {"real_tokens", "reward_margin", "reward_accuracy", "ipm"}
"""The data's own, and comparisons with an opponent, which is another one for each version."""


def mean(value_N: Floats, name: str, target: float | None = None) -> Score:
    """Return the mean over the items that count, with its standard error: sample standard deviation / sqrt(n).

    Args:
        value_N: One value for each item, NaN for items that do not count. At least one counts.
        name: The score's name, which decides whether higher is better.
        target: The best value, for a score that can be too high as well as too low.
    """
    value_N = value_N[~np.isnan(value_N)]
    n = len(value_N)
    stderr = float(value_N.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    better = None if target is not None or name in _NEITHER_IS_BETTER else name not in LOWER_IS_BETTER
    return Score(value=float(value_N.mean()), stderr=stderr, n=n, higher_is_better=better, target=target)


def write_items(path: Path, ids: Sequence[str], values: Values) -> None:
    """Write `items.parquet`: one row for each score and item that counts."""
    rows = [
        {"task": task, "item": id, "value": float(value)}
        for task, value_N in values.items()
        for id, value in zip(ids, value_N, strict=True)
        if not np.isnan(value)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ITEMS), path)
