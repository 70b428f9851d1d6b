"""The display of a run in a terminal. In a worker nothing is displayed: Prefect has the log."""

import contextlib
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Silent:
    """Shows nothing."""

    def started(self, title: str) -> None:
        """A phase has started."""

    def progress(self, message: Mapping[str, Any]) -> None:
        """The phase has made progress."""

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
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = _make_console()
        self.live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[metrics]}"),
            console=self.console,
            transient=True,
        )
        self.bar: Any = None
        self.last: Mapping[str, Any] = {}
        self.began = time.monotonic()
        self.count_reused = 0
        self.live.start()

    def started(self, title: str) -> None:
        self.last = {}
        self.bar = self.live.add_task(title, total=None, unit="", metrics="")

    def progress(self, message: Mapping[str, Any]) -> None:
        self.last = message
        self.live.update(
            self.bar,
            completed=message["done"],
            total=message["total"],
            unit=f"{message['unit']}s",
            metrics=numbers(message) + time_left(message),
        )

    def finished(self, title: str, seconds: float) -> None:
        self.live.remove_task(self.bar)
        did = f"{self.last['done']:,} {self.last['unit']}s" if self.last else ""
        self._print(f"[green]done[/]    {title:<28} {seconds:6.1f} s  {did:<15} [dim]{numbers(self.last)}[/]")

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
        from rich.markup import escape

        self._print(f"[yellow]note[/]    {escape(text)}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.live.stop()

    def _print(self, text: str) -> None:
        """Print a line. A run does not end because nobody reads its output, or a full disk cannot hold it."""
        with contextlib.suppress(OSError):
            self.console.print(text)


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


def time_left(message: Mapping[str, Any]) -> str:
    """`  1:02:05 left`, if the phase knows."""
    seconds = message.get("metrics", {}).get("seconds left")
    return f"  {timedelta(seconds=int(seconds))} left" if seconds is not None else ""


def _format(value: float) -> str:
    """`0.5536`, or `34,890`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


current: Silent = Silent()
"""The display of this process, which the command line sets."""
