"""The values of each item that a score is the mean of."""

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
"""A score's value at each held-out prompt; NaN where the prompt does not count."""

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

NEITHER_IS_BETTER = {"real_tokens", "reward_margin", "reward_accuracy", "ipm"}
"""The data's own, and what is told against an opponent, which is another for each version."""


def mean(value_N: Floats, name: str, target: float | None = None) -> Score:
    """A score over the items that count, with the standard error of their mean. Nearer to a `target` is better."""
    value_N = value_N[~np.isnan(value_N)]
    n = len(value_N)
    stderr = float(value_N.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    better = None if target is not None or name in NEITHER_IS_BETTER else name not in LOWER_IS_BETTER
    return Score(value=float(value_N.mean()), stderr=stderr, n=n, higher_is_better=better, target=target)


def write_items(path: Path, ids: Sequence[str], values: Values) -> None:
    """Write `items.parquet`: task, item, value."""
    rows = [
        (task, id, float(value))
        for task, value_N in values.items()
        for id, value in zip(ids, value_N, strict=True)
        if not np.isnan(value)
    ]
    schema = pa.schema([("task", pa.string()), ("item", pa.string()), ("value", pa.float64())])
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    pq.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema), path)
