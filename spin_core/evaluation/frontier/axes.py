"""What a sweep over temperatures measures, and the file that keeps it. Imports nothing heavy, since tables read it."""

from collections.abc import Collection

import pyarrow as pa

from spin_core.config.evaluate import EvaluateConfig

FILE = "frontier.parquet"
"""In the report of the suite `frontier`: one row for each temperature, metric and item."""

SCHEMA = pa.schema(
    [("temperature", pa.float64()), ("task", pa.string()), ("item", pa.string()), ("value", pa.float64())]
)

EXACT = ("total_variation", "invalid_mass")
"""The axes where p_data is known: the share of the answers that would have to change, and the mass on wrong answers."""

HIGHER_IS_BETTER = ("distinct_2",)
"""The axes on which more is better."""


def axes_of(measured: Collection[str], config: EvaluateConfig) -> tuple[str, str] | None:
    """Return the axes of diversity and quality among what a sweep has measured; None if it lacks one of them."""
    axes = EXACT if set(EXACT) <= set(measured) else (config.frontier_diversity, config.frontier_quality)
    return axes if set(axes) <= set(measured) else None
