"""What the pages at `/lineages/` show of a runs folder: its lineages and comparisons, read from their JSON files.

A folder may have been pulled from elsewhere, so nothing in its files is trusted: names are those of folders and have
the form of names, and other values are checked for their type. What was read once is kept until the file changes, so
that the index of hundreds of lineages costs a few system calls for each.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spin_core.lineage.find import is_name
from spin_core.lineage.holders import is_locked
from spin_core.lineage.lineage import CONFIGURATION

BOARD, COMPARISON, REPORT, SAMPLES = "leaderboard.json", "compare.json", "report.html", "samples.html"

_MOST_BYTES = 32 * 2**20
"""A larger JSON file was not written by spin-loop."""

_MOST_ITERATIONS = 999_999
"""A larger number of an iteration has no folder."""

_LATEST = datetime(2999, 1, 1, tzinfo=UTC)
"""A file that changed later has a damaged time."""


@dataclass(frozen=True)
class Version:
    """A version of a lineage, or a control, with its main score."""

    name: str
    t: int | None
    value: float | None
    shown: str
    gate: str


@dataclass(frozen=True)
class Scores:
    """What a leaderboard's file says."""

    metric: str = ""
    arrow: str = ""
    choice: int | None = None
    versions: tuple[Version, ...] = ()
    controls: tuple[Version, ...] = ()

    @property
    def head(self) -> int:
        """The number of the newest version; 0 without any."""
        return max((version.t for version in self.versions if version.t is not None), default=0)

    @property
    def headline(self) -> Version | None:
        """The version that the gate has chosen, else the newest."""
        chosen = [version for version in self.versions if version.t == self.choice]
        return next(reversed(chosen or self.versions), None)

    @property
    def values(self) -> list[float]:
        """The main score of each version that has one."""
        return [version.value for version in self.versions if version.value is not None]


@dataclass(frozen=True)
class Entry:
    """A lineage or a comparison as the pages show it."""

    name: str
    recipe: str
    iterations: int | None
    """How many the lineage's configuration has; None for a comparison."""
    scores: Scores
    state: str
    changed: datetime
    files: frozenset[str]
    """Which of the pages it has."""
    pages: tuple[int, ...] = ()
    """Iterations that have a page."""


class Catalogue:
    """The lineages and comparisons of a runs folder."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs.resolve()
        self._read: dict[Path, tuple[tuple[int, ...], Any]] = {}

    def lineages(self) -> list[Entry]:
        """All lineages, the one that changed last first."""
        return self._all(CONFIGURATION, self.lineage)

    def comparisons(self) -> list[Entry]:
        """All comparisons, the one that changed last first."""
        return self._all(COMPARISON, self.comparison)

    def lineage(self, name: str) -> Entry | None:
        """The lineage of that name; None if there is none."""
        root = self._folder(name)
        if root is None or not (file := self.file(name, CONFIGURATION)):
            return None
        config = _mapping(_mapping(self._json(file)).get("config"))
        scores = _scores(self._json(self.file(name, BOARD)))
        return Entry(
            name=name,
            recipe=_text(config.get("recipe")),
            iterations=_count(config.get("iterations")),
            scores=scores,
            state=_state(root, scores),
            changed=_changed(root),
            files=frozenset(page for page in (REPORT, SAMPLES) if self.file(name, page)),
            pages=tuple(self._pages(name, root)),
        )

    def comparison(self, name: str) -> Entry | None:
        """The comparison of that name; None if there is none."""
        root = self._folder(name)
        if root is None or not self.file(name, COMPARISON):
            return None
        files = frozenset(page for page in (REPORT,) if self.file(name, page))
        return Entry(name, "", None, Scores(), "", _changed(root), files)

    def file(self, name: str, relative: str) -> Path | None:
        """A file of a lineage or comparison; None if it is missing, or if a symbolic link leads to it."""
        if self._folder(name) is None:
            return None
        path = self.runs / name / relative
        with contextlib.suppress(OSError):
            return path if path.is_file() and path.resolve() == path else None
        return None

    def _folder(self, name: str) -> Path | None:
        """The folder of that name, if it can be a lineage's and no symbolic link."""
        path = self.runs / name
        return path if is_name(name) and path.is_dir() and not path.is_symlink() else None

    def _all(self, marker: str, read: Any) -> list[Entry]:
        """All entries whose folder has the marker, the newest first."""
        entries = (read(path.parent.name) for path in self.runs.glob(f"*/{marker}"))
        return sorted(
            (entry for entry in entries if entry), key=lambda entry: (entry.changed, entry.name), reverse=True
        )

    def _pages(self, name: str, root: Path) -> Iterator[int]:
        """The iterations that have a page, in order."""
        numbers = [path.name[5:] for path in root.glob("iter_*") if re.fullmatch(r"\d{2,6}", path.name[5:])]
        for number in sorted(map(int, numbers)):
            if self.file(name, page_of(number)):
                yield number

    def _json(self, path: Path | None) -> Any:
        """A JSON file's value, read again when the file has changed; None if it cannot be read."""
        if path is None:
            return None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            status = path.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if status.st_size > _MOST_BYTES:
                return None
            if (kept := self._read.get(path)) and kept[0] == stamp:
                return kept[1]
            value = _needed(json.loads(path.read_text("utf-8")))
            self._read[path] = stamp, value
            return value
        return None


def page_of(t: int) -> str:
    """The path of an iteration's page below the lineage's folder."""
    return f"iter_{t:02d}/report.md"


def _needed(value: Any) -> Any:
    """What is kept of a file: a leaderboard's scores, or a configuration's few values."""
    content = _mapping(value)
    if "rows" in content:
        return _board(content)
    config = _mapping(content.get("config"))
    return {"config": {name: config.get(name) for name in ("recipe", "iterations")}}


def _board(content: dict[str, Any]) -> Scores:
    """The scores in a leaderboard's file."""
    metric = _text(content.get("main_metric"))
    rows = [_mapping(row) for row in _list(content.get("rows"))]
    last = _mapping(_mapping(rows[-1].get("scores")).get(metric)) if rows else {}
    better, target = last.get("higher_is_better"), _number(last.get("target"))
    arrow = f"→{target:.3g}" if target is not None else "↑" if better is True else "↓" if better is False else ""
    return Scores(
        metric=metric.replace("_", " "),
        arrow=arrow,
        choice=_count(content.get("choice")),
        versions=tuple(_version(row, metric) for row in rows),
        controls=tuple(_version(_mapping(row), metric) for row in _list(content.get("controls"))),
    )


def _version(row: dict[str, Any], metric: str) -> Version:
    """One row of a leaderboard."""
    score = _mapping(_mapping(row.get("scores")).get(metric))
    value, error = _number(score.get("value")), _number(score.get("stderr"))
    return Version(_text(row.get("name")), _count(row.get("t")), value, shown(value, error), _text(row.get("gate")))


def shown(value: float | None, error: float | None) -> str:
    """`0.1234 ± 0.0043`, with as many digits as two of the error need, but at most six."""
    if value is None:
        return "–"
    if not error or error < 0:
        return f"{value:.4g}"
    digits = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _scores(value: Any) -> Scores:
    return value if isinstance(value, Scores) else Scores()


def _state(root: Path, scores: Scores) -> str:
    """`running`, `ended by the gate`, `not running, in iteration 2`, `not scored yet`, or empty for a finished one."""
    if is_locked(root / ".lock"):
        return "running"
    if scores.versions and scores.versions[-1].gate == "stop":
        return "ended by the gate"
    if os.path.lexists(root / f"iter_{scores.head:02d}"):
        return f"not running, in iteration {scores.head}"
    return "" if scores.versions else "not scored yet"


def _changed(root: Path) -> datetime:
    """When the folder's results changed last."""
    times = [0.0]
    for path in (root, *(root / name for name in (CONFIGURATION, BOARD, COMPARISON))):
        with contextlib.suppress(OSError):
            times.append(path.lstat().st_mtime)
    return datetime.fromtimestamp(min(max(times), _LATEST.timestamp()), UTC)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    """At most 200 characters, without halves of surrogate pairs, which JSON may have and a page may not."""
    return value[:200].encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    """A finite number as it is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
        return float(value) if math.isfinite(value) else None
    return None


def _count(value: Any) -> int | None:
    """A number of iterations, or of an iteration; None for anything else."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ITERATIONS
    return value if is_count else None
