"""How far a generation is over all its workers: answers, tokens, rates, and the time left."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin_core.inference.shards import Claim, Shards
from spin_core.runtime.progress import Progress

log = logging.getLogger("spin_core")

_UPDATE_SECONDS = 0.5
"""How often the folder is read while a shard is answered."""


class Tally:
    """Counts answers and tokens of the whole job. Reads each finished shard once, and removes a damaged one."""

    def __init__(self, shards: Shards, ids_in: Callable[[int], list[str]], progress: Progress) -> None:
        """`ids_in` gives the prompts' ids that a shard must hold, in order."""
        self.shards, self.ids_in, self.progress = shards, ids_in, progress
        self._finished: dict[int, tuple[int, int]] = {}
        """By shard: its answers and tokens."""
        self._start: tuple[float, int, int] | None = None
        """When the clock started, and the answers and tokens of that moment."""
        self._updated = 0.0

    def update(self, own: Claim | None = None) -> None:
        """Count finished shards and those in progress, and report the sums. `own` is this process's own shard."""
        if own is not None and time.monotonic() - self._updated < _UPDATE_SECONDS:
            return
        self._updated = time.monotonic()
        self._count_finished()
        in_progress = {
            number: (holder["items"], holder["tokens"])
            for number, holder in self.shards.holders()
            if number not in self._finished
        }
        if own is not None:
            in_progress[own.number] = own.items, own.tokens
        items, tokens = _total([*self._finished.values(), *in_progress.values()])
        if any(any(counts) for counts in in_progress.values()):
            self.start_clock(items, tokens)
        self.progress.show(items, **self.rates(items, tokens))

    def start_clock(self, items: int | None = None, tokens: int | None = None) -> None:
        """Start the clock of the rates, unless it runs: rates exclude the time that loading a model takes."""
        if self._start is None:
            finished_items, finished_tokens = _total(list(self._finished.values()))
            self._start = (
                time.monotonic(),
                finished_items if items is None else items,
                finished_tokens if tokens is None else tokens,
            )

    def rates(self, items: int, tokens: int) -> dict[str, float]:
        """Tokens and answers a second since the clock started, and the seconds left at this rate."""
        if self._start is None:
            return {}
        started, items_before, tokens_before = self._start
        seconds = max(1e-9, time.monotonic() - started)
        rates = {
            "tokens/s": round((tokens - tokens_before) / seconds, 1),
            "answers/s": round((items - items_before) / seconds, 2),
        }
        if items > items_before:
            rates["seconds left"] = round((self.progress.total - items) / ((items - items_before) / seconds))
        return rates

    def _count_finished(self) -> None:
        for number in sorted(set(range(self.shards.count)) - set(self.shards.missing()) - set(self._finished)):
            counts = _read_counts(self.shards.path(number), self.ids_in(number))
            if counts is None:
                log.warning("%s is damaged: it is made again", self.shards.path(number))
                self.shards.path(number).unlink(missing_ok=True)
            else:
                self._finished[number] = counts


def merge_timings(folder: Path, names: Sequence[str], log_file: Path) -> list[dict[str, Any]]:
    """Collect the timings that workers wrote, those of earlier attempts included, into one file of JSON lines.

    Returns the timings.
    """
    paths = [folder / f"{name}.json" for name in names]
    timings: list[dict[str, Any]] = [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]
    if timings:
        log_file.parent.mkdir(exist_ok=True)
        log_file.write_text("".join(f"{json.dumps(timing)}\n" for timing in timings), "utf-8")
    return timings


def _total(counts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(items for items, _ in counts), sum(tokens for _, tokens in counts)


def _read_counts(path: Path, ids: Sequence[str]) -> tuple[int, int] | None:
    """A shard's answers and tokens; None if it cannot be read, or does not hold the answers to `ids`."""
    try:
        table = pq.read_table(path)
        tokens: int = pc.sum(pc.list_value_length(table["response_ids"])).as_py() or 0
        return (len(table), tokens) if table["id"].to_pylist() == list(ids) else None
    except (pa.ArrowException, OSError, KeyError):
        return None
