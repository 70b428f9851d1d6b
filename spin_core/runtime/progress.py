"""Progress of a phase, as JSON lines on stdout."""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from spin_core.errors import STOPPED, Stopped


class Progress:
    """What a phase tells while it works, at most four times a second, and whether it has been asked to stop."""

    def __init__(self, unit: str = "item", total: int = 0, out: TextIO | None = None, *, quiet: bool = False) -> None:
        """`quiet` for a process that is not the one to tell how far the work is."""
        self.unit, self.total, self.quiet = unit, total, quiet
        self._stop = False
        self._told = 0.0
        self._out = out or sys.stdout

    def start(self, total: int, unit: str) -> None:
        """Say how much there is to do."""
        self.unit, self.total = unit, total
        self._told = 0.0

    def tell(self, done: float, **metrics: float) -> None:
        """Report `done` of the total. Raises `Stopped` if SIGTERM arrived: call it where everything is saved."""
        self.show(done, **metrics)
        self.check()

    def show(self, done: float, **metrics: float) -> None:
        """Report `done` of the total, and nothing else."""
        now = time.monotonic()
        if not self.quiet and (now - self._told > 0.25 or done == self.total):
            self._told = now
            self.say({"done": done, "total": self.total, "unit": self.unit, "metrics": metrics})

    def check(self) -> None:
        """Raise `Stopped` if SIGTERM arrived."""
        if self._stop:
            raise Stopped(STOPPED)

    @property
    def stopping(self) -> bool:
        """SIGTERM arrived: save and call `check`."""
        return self._stop

    def stop(self, *_: object) -> None:
        """The SIGTERM handler."""
        self._stop = True

    def say(self, message: Mapping[str, Any]) -> None:
        """One JSON object on the protocol's line."""
        print(json.dumps(message), file=self._out, flush=True)


def claim_stdout() -> TextIO:
    """What was stdout, for the protocol alone: all else that is printed, be it from C or by a child, goes to stderr."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return ours
