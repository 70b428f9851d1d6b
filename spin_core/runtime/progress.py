"""Progress of a phase, as JSON lines on its standard output."""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from spin_core.errors import STOPPED, Stopped

_INTERVAL_SECONDS = 0.25


class Progress:
    """Reports how far a phase is, at most four times a second, and knows whether the phase was asked to stop."""

    def __init__(self, unit: str = "item", total: int = 0, out: TextIO | None = None, *, quiet: bool = False) -> None:
        """Report to `out`, standard output by default; `quiet` is for ranks that report no progress."""
        self.unit, self.total, self.quiet = unit, total, quiet
        self._stop = False
        self._last_shown = 0.0
        self._out = out or sys.stdout

    def start(self, total: int, unit: str) -> None:
        """Set how much there is to do, and in which unit."""
        self.unit, self.total = unit, total
        self._last_shown = 0.0

    def report(self, done: float, **metrics: float) -> None:
        """Show `done`, then check for a stop. Call it where everything is saved.

        Raises:
            Stopped: SIGTERM arrived.
        """
        self.show(done, **metrics)
        self.check()

    def show(self, done: float, **metrics: float) -> None:
        """Send how much is done, unless the last message was just sent."""
        now = time.monotonic()
        if not self.quiet and (now - self._last_shown > _INTERVAL_SECONDS or done == self.total):
            self._last_shown = now
            self.send({"done": done, "total": self.total, "unit": self.unit, "metrics": metrics})

    def check(self) -> None:
        """Raise `Stopped` if SIGTERM arrived."""
        if self._stop:
            raise Stopped(STOPPED)

    @property
    def stopping(self) -> bool:
        """SIGTERM arrived: save, and call `check`."""
        return self._stop

    def stop(self, *_: object) -> None:
        """Note that the phase is asked to stop. This is the SIGTERM handler."""
        self._stop = True

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message, a JSON object on a line."""
        print(json.dumps(message), file=self._out, flush=True)


def claim_stdout() -> TextIO:
    """Take standard output for messages alone.

    Whatever else the process prints, from C code or from a child too, goes to standard error from now on.
    """
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return messages
