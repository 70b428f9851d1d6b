"""The rows that training writes while it runs, one JSON object a line. Reading them does not need torch."""

import json
import math
from pathlib import Path

from spin_core.errors import DamagedArtifact, first_line

METRICS = "metrics.jsonl"
"""The metrics of every step."""

TIMING = "log/timing.jsonl"
"""The time of every step in seconds, and `wait`, the seconds that it waited for its batch."""

HELD_OUT = "held_out.jsonl"
"""The metrics on held-out pairs."""


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a file, without an incomplete last line as a kill leaves it; empty if the file is missing.

    Raises:
        DamagedArtifact: Another line is not a row.
    """
    if not path.exists():
        return []
    try:
        *whole, _ = path.read_text("utf-8").split("\n")
        rows = [json.loads(line) for line in whole]
        return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedArtifact(
            f"{path} is damaged ({first_line(error)}): remove {path.parent} and run the same command again"
        ) from error
