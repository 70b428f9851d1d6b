"""How far a generation is, over all its workers: what is done, what is in the making, how fast, how long yet."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin_core.inference.shards import Claim, Shards
from spin_core.runtime.progress import Progress

log = logging.getLogger("spin_core")

LOOK_SECONDS = 0.5
"""How often the folder is looked at while a shard is being answered."""


class Tally:
    """Answers and tokens of the whole set. Each finished shard is read once, and one that is damaged removed."""

    def __init__(self, shards: Shards, ids: Sequence[Sequence[str]], progress: Progress) -> None:
        """`ids`: whose answers each shard holds, in order."""
        self.shards, self.ids, self.progress = shards, ids, progress
        self.done: dict[int, tuple[int, int]] = {}
        self._began: tuple[float, int, int] | None = None
        self._looked = 0.0

    def look(self, own: Claim | None = None) -> None:
        """Count what is there and tell it. `own` is the shard that this process is at work on."""
        if own is not None and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for number in sorted(set(range(self.shards.count)) - set(self.shards.missing()) - set(self.done)):
            counts = read_counts(self.shards.path(number), self.ids[number])
            if counts is None:
                log.warning("%s is damaged: it is made again", self.shards.path(number))
                self.shards.path(number).unlink(missing_ok=True)
            else:
                self.done[number] = counts
        making = {at: (who["items"], who["tokens"]) for at, who in self.shards.holders() if at not in self.done}
        if own is not None:
            making[own.number] = own.items, own.tokens
        items, tokens = (sum(part) for part in zip((0, 0), *self.done.values(), *making.values(), strict=True))
        if any(any(part) for part in making.values()):
            self.begin(items, tokens)
        self.progress.show(items, **self.rates(items, tokens))

    def begin(self, items: int | None = None, tokens: int | None = None) -> None:
        """Start the clock, unless it runs: the time to load a model is no part of a rate."""
        if self._began is None:
            had = [sum(part) for part in zip((0, 0), *self.done.values(), strict=True)]
            self._began = time.monotonic(), had[0] if items is None else items, had[1] if tokens is None else tokens

    def rates(self, items: int, tokens: int) -> dict[str, float]:
        """Tokens and answers a second since the clock began, and the seconds that are left at this rate."""
        if self._began is None:
            return {}
        began, items_before, tokens_before = self._began
        seconds = max(1e-9, time.monotonic() - began)
        found = {
            "tokens/s": round((tokens - tokens_before) / seconds, 1),
            "answers/s": round((items - items_before) / seconds, 2),
        }
        if items > items_before:
            found["seconds left"] = round((self.progress.total - items) / ((items - items_before) / seconds))
        return found


def read_counts(path: Path, ids: Sequence[str]) -> tuple[int, int] | None:
    """A shard's answers and tokens; None if it cannot be read, or does not hold the answers to `ids`."""
    try:
        table = pq.read_table(path)
        tokens: int = pc.sum(pc.list_value_length(table["response_ids"])).as_py() or 0
        return (len(table), tokens) if table["id"].to_pylist() == list(ids) else None
    except (pa.ArrowException, OSError, KeyError):
        return None


def merge_timings(folder: Path, names: Sequence[str], log_file: Path) -> list[dict[str, Any]]:
    """Put what the workers noted of their shards into one file, a line each; those of earlier attempts included.

    Returns the notes.
    """
    notes = [folder / f"{name}.json" for name in names]
    lines: list[dict[str, Any]] = [json.loads(note.read_text("utf-8")) for note in notes if note.exists()]
    if lines:
        log_file.parent.mkdir(exist_ok=True)
        log_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return lines
