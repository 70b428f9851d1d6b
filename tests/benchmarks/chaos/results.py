"""The results of the kills, as JSON lines in a file, and the tables made of them."""

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Kill:
    """One signal."""

    target: str
    signal: str
    after: float
    """Seconds since the command was started."""
    recovery: float | None = None
    """Seconds until the next phase began or the lineage was complete; None if neither happened before the next kill."""
    at: float = 0.0
    """When it was sent, by the machine's clock."""


@dataclass
class Result:
    """One lineage, killed and continued until it was complete."""

    kind: str
    command: str
    seed: str
    kills: list[Kill] = field(default_factory=list)
    compared: int = 0
    different: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    def begin(self, kill: Kill) -> None:
        """Add a kill that is sent now."""
        kill.at = time.monotonic()
        self.kills.append(kill)

    def overcome(self) -> None:
        """Note that a phase began, or the lineage is complete, after the last kill."""
        if self.kills and self.kills[-1].recovery is None:
            self.kills[-1].recovery = round(time.monotonic() - self.kills[-1].at, 1)

    @property
    def is_good(self) -> bool:
        """Whether nothing differs and nothing is left."""
        return not (self.different or self.orphans or self.leftovers or self.tracebacks) and self.compared > 0


def append(file: Path, result: Result) -> None:
    """Add a result to the file."""
    with file.open("a", encoding="utf-8") as out:
        print(json.dumps(asdict(result)), file=out)


def read(file: Path) -> list[Result]:
    """All results of a file."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    return [Result(**{**row, "kills": [Kill(**kill) for kill in row["kills"]]}) for row in rows]


def table(results: Sequence[Result]) -> str:
    """The two tables, in Markdown: kills by target and signal, and results by kind."""
    kills = Counter((kill.target, kill.signal) for result in results for kill in result.kills)
    names = [name for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if any(key[1] == name for key in kills)]
    targets = sorted({target for target, _ in kills})
    by_target = [
        [target, *(kills[target, name] for name in names), sum(kills[target, name] for name in names)]
        for target in targets
    ]
    total = ["**all**", *(sum(kills[target, name] for target in targets) for name in names), kills.total()]
    kinds = list(dict.fromkeys((result.kind, result.command) for result in results))
    by_kind = [
        _row(f"{kind}, `{command}`", [result for result in results if (result.kind, result.command) == (kind, command)])
        for kind, command in kinds
    ]
    head = ["lineages of kind", "lineages", "kills", "digests equal", "orphans", "leftovers", "tracebacks"]
    return (
        _markdown(["killed", *names, "all"], [*by_target, total])
        + "\n"
        + _markdown([*head, "recovery, median", "worst"], [*by_kind, _row("**all**", results)])
    )


def _row(name: str, results: Sequence[Result]) -> list[Any]:
    """One kind's results."""
    kills = [kill for result in results for kill in result.kills]
    seconds = [kill.recovery for kill in kills if kill.recovery is not None]
    compared = sum(result.compared for result in results)
    equal = compared - sum(len(result.different) for result in results)
    counts = [sum(len(getattr(result, what)) for result in results) for what in ("orphans", "leftovers", "tracebacks")]
    times = [f"{statistics.median(seconds):.0f} s", f"{max(seconds):.0f} s"] if seconds else ["–", "–"]
    return [name, len(results), len(kills), f"{equal} of {compared}", *counts, *times]


def _markdown(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
