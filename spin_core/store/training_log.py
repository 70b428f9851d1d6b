"""The rows that a training writes while it works, a JSON object a line. Reading them takes no torch."""

import json
import math
from pathlib import Path

METRICS = "metrics.jsonl"
"""What every step measured."""

TIMING = "log/timing.jsonl"
"""What every step took: seconds at work, and `wait`, those that it waited for its batch."""

HELD_OUT = "held_out.jsonl"
"""What was measured on held-out pairs."""


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a file, but for a last line that a kill cut short; empty if there is no file."""
    if not path.exists():
        return []
    *whole, _ = path.read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in whole]
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
