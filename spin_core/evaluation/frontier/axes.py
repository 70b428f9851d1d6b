"""What a sweep over temperatures measures, and the file that keeps it. Imports nothing heavy, since tables read it."""

import pyarrow as pa

FILE = "frontier.parquet"
"""In the report of the suite `frontier`: one row for each temperature, metric and item."""

SCHEMA = pa.schema(
    [("temperature", pa.float64()), ("task", pa.string()), ("item", pa.string()), ("value", pa.float64())]
)

EXACT = ("total_variation", "invalid_mass")
"""The axes where p_data is known: the share of the answers that would have to change, and the mass on wrong answers."""
