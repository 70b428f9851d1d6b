"""The display of a run in a terminal. In a worker nothing is displayed: Prefect has the log."""

import contextlib
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from spin_core.errors import count
from spin_core.preflight.findings import duration

if TYPE_CHECKING:
    from rich.console import Console


class Silent:
    """Shows nothing."""

    def started(self, title: str) -> None:
        """A phase has started."""

    def progress(self, message: Mapping[str, Any]) -> None:
        """The phase has made progress."""

    def running(self, line: str) -> None:
        """How far a phase is, every few minutes."""

    def log(self, line: str) -> None:
        """A phase has logged a line."""

    def finished(self, title: str, seconds: float) -> None:
        """A phase has finished."""

    def reused(self, title: str) -> None:
        """A phase had been finished before."""

    def failed(self, title: str) -> None:
        """A phase has failed. The error itself is reported elsewhere."""

    def stopped(self, title: str) -> None:
        """A phase has saved its work and ended, on request."""

    def noted(self, text: str) -> None:
        """Show a warning that does not end the run."""

    def close(self) -> None:
        """The run is over."""


class Terminal(Silent):
    """Prints one line per phase, with a live progress bar if the output is a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
        from rich.text import Text

        class Details(ProgressColumn):
            """What the phase has reported; before that, for how long it has been running."""

            def render(self, task: Task) -> Text:
                elapsed = timedelta(seconds=int(task.elapsed or 0))
                return Text(task.fields["details"] or str(elapsed), no_wrap=True, overflow="ellipsis")

        self.console = _make_console()
        self.live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            Details(),
            console=self.console,
            transient=True,
        )
        self.bar: Any = None
        self.first: Mapping[str, Any] = {}
        self.last: Mapping[str, Any] = {}
        self.began = time.monotonic()
        self.count_reused = 0
        self.live.start()

    def started(self, title: str) -> None:
        self.first = self.last = {}
        self.bar = self.live.add_task(title, total=None, details="")

    def progress(self, message: Mapping[str, Any]) -> None:
        self.first, self.last = self.first or message, message
        self.live.update(
            self.bar,
            completed=message["done"],
            total=message["total"],
            details=details(message),
        )

    def running(self, line: str) -> None:
        if not self.console.is_terminal:  # a terminal has the bar
            self._print(f"[dim]running {_escaped(line)}[/]")

    def finished(self, title: str, seconds: float) -> None:
        self.live.remove_task(self.bar)
        did, figures = amount(self.last), change(self.first, self.last)
        took = f"{seconds:5.1f}" if seconds < 1000 else f"{seconds:5.0f}"
        self._print(f"[green]done[/]    {title:<28} {took} s {did:<14} [dim]{figures}[/]")

    def reused(self, title: str) -> None:
        self.count_reused += 1
        self._print(f"[cyan]reused[/]  {title}")

    def failed(self, title: str) -> None:
        self.live.remove_task(self.bar)
        self._print(f"[red]failed[/]  {title}")

    def stopped(self, title: str) -> None:
        self.live.remove_task(self.bar)
        self._print(f"[yellow]stopped[/] {title}")

    def noted(self, text: str) -> None:
        self._print(f"[yellow]note[/]    {_escaped(text)}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.live.stop()

    def _print(self, text: str) -> None:
        """Print a line, unbroken. A run does not end because nobody reads its output, or a full disk cannot hold it."""
        with contextlib.suppress(OSError):
            self.console.print(text, soft_wrap=True)


def _escaped(text: str) -> str:
    """A text without markup of rich's."""
    from rich.markup import escape

    return escape(text)


def _make_console() -> "Console":
    """A console on standard output that does not mind if its reader has gone; rich's own ends the process."""
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            """Print no more."""

    return _Console(highlight=False)


_SHOWN = ("loss", "tokens/s")
"""The metrics that fit on a line. The others are in the record."""


def numbers(message: Mapping[str, Any]) -> str:
    """The metrics of a progress message in one line."""
    metrics = message.get("metrics", {})
    return "  ".join(f"{name} {_format(metrics[name])}" for name in _SHOWN if name in metrics)


def details(message: Mapping[str, Any]) -> str:
    """`1,200/6,000 steps  0:12:03 left  run 40 min  loss 0.5536`: the most important first, since it may be cut."""
    metrics = message.get("metrics", {})
    phase, run = metrics.get("seconds left"), metrics.get("seconds left of the run")
    parts = (
        f"{message['done']:,}/{count(message['total'], message['unit'])}",
        f"{timedelta(seconds=int(phase))} left" if phase is not None else "",
        f"run {duration(run)}" if run is not None else "",
        numbers(message),
    )
    return "  ".join(part for part in parts if part)


def change(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """The metrics at the end of a phase: `loss 0.6931 → 0.5210`, `tokens/s 6,620`."""
    before, metrics = first.get("metrics", {}), last.get("metrics", {})
    parts = []
    if "loss" in metrics:
        has_start = "loss" in before and first["done"] != last["done"]
        start = f"{_loss(before['loss'])} → " if has_start else ""
        parts.append(f"loss {start}{_loss(metrics['loss'])}")
    return "  ".join([*parts, *(f"{name} {_format(metrics[name])}" for name in _SHOWN[1:] if name in metrics)])


def amount(message: Mapping[str, Any]) -> str:
    """`135 steps`; empty for a phase that has reported nothing."""
    if not message:
        return ""
    return count(message["done"], message["unit"])


def time_left(message: Mapping[str, Any]) -> str:
    """`1:02:05 left  run: about 3.5 h left`, as far as that is known."""
    metrics = message.get("metrics", {})
    phase, run = metrics.get("seconds left"), metrics.get("seconds left of the run")
    parts = [
        *([f"{timedelta(seconds=int(phase))} left"] if phase is not None else []),
        *([f"run: about {duration(run)} left"] if run is not None else []),
    ]
    return "  ".join(parts)


def _loss(value: float) -> str:
    """`0.5210`, so that losses are below each other; `7.259e-07` where four decimals would show none of it."""
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.4g}"


def _format(value: float) -> str:
    """`0.5536`, or `34,890`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


current: Silent = Silent()
"""The display of this process, which the command line sets."""
