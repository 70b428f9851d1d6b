"""Rows that a phase leaves out: counted by reason, listed in the log, and explained where no row is left."""

from collections import Counter
from collections.abc import Mapping

from spin_core.errors import DataError

Drops = Counter[str]
"""How many rows were left out, by reason."""


def list_drops(drops: Drops) -> str:
    """Drops as the end of a line in the log: `; 188 empty-response, 3 duplicate`. Empty if there are none."""
    parts = [f"{count:,} {reason}" for reason, count in sorted(drops.items()) if count]
    return f"; {', '.join(parts)}" if parts else ""


def explain_drops(drops: Drops) -> str:
    """The commonest drops as a clause of a message: ` (rows left out: 37 as prompt-too-long)`. Empty without any."""
    parts = [f"{count:,} as {reason}" for reason, count in drops.most_common(2) if count]
    return f" (rows left out: {', '.join(parts)})" if parts else ""


def nothing_left(rows: str, drops: Drops, fixes: Mapping[str, str]) -> DataError:
    """The error to raise when all rows were dropped: the commonest reason, and what to do about it.

    Args:
        rows: what is missing, for instance "row of data.jsonl".
        drops: must not be empty.
        fixes: what to do, by reason.
    """
    reason, count = drops.most_common(1)[0]
    fix = fixes.get(reason, "give other data")
    return DataError(f"no {rows} is left ({count} of {drops.total()} dropped as {reason}): {fix}")
