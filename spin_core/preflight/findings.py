"""The findings of `spin check`: what they hold, how they are collected, and how numbers are written in them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from spin_core.config.base import Frozen
from spin_core.errors import SpinError, printable

_T = TypeVar("_T")

Level = Literal["ok", "warn", "wrong"]


class Finding(Frozen):
    """The result of one look: a subject, whether it is all right, and one line of text."""

    subject: str
    level: Level
    text: str


class Findings(Frozen):
    """The results of all looks, in order."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. There may be warnings."""
        return not any(finding.level == "wrong" for finding in self.findings)


class Inspection:
    """Collects findings.

    A `SpinError` becomes a finding, so that one mistake does not hide others. A look that needs the result of one that
    failed is skipped.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, subject: str, text: str, level: Level = "ok") -> None:
        """Add a finding."""
        self.findings.append(Finding(subject=subject, level=level, text=text))

    def add_need(self, subject: str, text: str, need: float, free: float, fix: str) -> None:
        """Add a finding about something that must fit. The need is an estimate, so four fifths of `free` is a warning.

        Args:
            subject: The finding's heading.
            text: What is needed, and what is free.
            need: The amount needed.
            free: The amount available, in the same unit.
            fix: How to need less, which follows the text unless all is well.
        """
        level: Level = "ok" if need < 0.8 * free else "warn" if need < free else "wrong"
        self.add(subject, text if level == "ok" else f"{text}: {fix}", level)

    def passes(self, subject: str, check: Callable[..., None], *needs: Any) -> bool:
        """Whether `check` raises no error. An error is added as a finding."""
        try:
            check(*needs)
        except SpinError as error:
            self._add_error(subject, error)
            return False
        return True

    def run(self, subject: str, look: Callable[..., _T], *needs: Any) -> _T | None:
        """The result of `look(self, *needs)`; None if one of the needs is None, or if `look` raises a `SpinError`."""
        if any(need is None for need in needs):
            return None
        try:
            return look(self, *needs)
        except SpinError as error:
            self._add_error(subject, error)
            return None

    def _add_error(self, subject: str, error: SpinError) -> None:
        """Add what is wrong, unless an earlier look has found the same."""
        if all(finding.text != str(error) for finding in self.findings):
            self.add(subject, str(error), "wrong")


def listed(values: Iterable[Any]) -> str:
    """`0.1, 0.1, 5`; one value if all are the same."""
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def listed_names(names: Sequence[str], most: int = 8) -> str:
    """`id, source and 12 more`: names from a user's data, in one line."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(printable(name, 40) for name in names[:most]) + more


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
