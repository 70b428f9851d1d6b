"""What `spin check` says: findings, how they are gathered, and how sizes and times are written in them."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from spin_core.config.base import Frozen
from spin_core.errors import SpinError

T = TypeVar("T")

Level = Literal["ok", "warn", "wrong"]


class Finding(Frozen):
    """One thing that was looked at."""

    subject: str
    level: Level
    text: str


class Findings(Frozen):
    """All that was looked at."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Nothing is wrong; there may be warnings."""
        return not any(finding.level == "wrong" for finding in self.findings)


class Looks:
    """Gathers findings. A user's error is a finding too, and what needs that which it prevented is left out."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, subject: str, text: str, level: Level = "ok") -> None:
        """A finding."""
        self.findings.append(Finding(subject=subject, level=level, text=text))

    def judge(self, subject: str, text: str, need: float, free: float, cure: str) -> None:
        """A finding about something that must fit: a warning from four fifths on, since the need is an estimate."""
        level: Level = "ok" if need < 0.8 * free else "warn" if need < free else "wrong"
        self.add(subject, text if level == "ok" else f"{text}: {cure}", level)

    def passes(self, subject: str, check: Callable[..., None], *needs: Any) -> bool:
        """Whether `check` raises no error. An error is added as a finding."""
        try:
            check(*needs)
        except SpinError as error:
            self.add(subject, str(error), "wrong")
            return False
        return True

    def at(self, subject: str, look: Callable[..., T], *needs: Any) -> T | None:
        """What `look` gives for its needs; None if one of these is missing, or if `look` finds an error."""
        if any(need is None for need in needs):
            return None
        try:
            return look(self, *needs)
        except SpinError as error:
            self.add(subject, str(error), "wrong")
            return None


def count(number: int, unit: str) -> str:
    """`3 iterations`."""
    return f"{number:,} {unit}" + ("" if number == 1 else "s")


def listed(values: Iterable[Any]) -> str:
    """`0.1, 0.1, 5`; one value if all are the same."""
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def size(number: float) -> str:
    """`1.3 GB`."""
    for unit, whole in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= whole:
            return f"{number / whole:.1f} {unit}" if number < 10 * whole else f"{number / whole:,.0f} {unit}"
    return f"{number / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
