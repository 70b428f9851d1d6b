"""The time that a phase and its run still take, from the phase's progress messages and from the run's plan."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_core.lineage.lineage import Lineage
from spin_core.preflight.times.plan import Plan
from spin_core.store.records import ModelVersion, PromptSet

OF_PHASE, OF_RUN = "seconds left", "seconds left of the run"
"""The metrics of a progress message with the time left."""

_SURE_AFTER_SECONDS = 3.0
"""How long a phase is watched before its speed is believed."""


class PhaseClock:
    """How long the rest of what a phase counts takes, at the speed that it has had since it began to count that."""

    def __init__(self, output: Path) -> None:
        self.output, self.started = output, time.monotonic()
        self.stage: tuple[int, str] | None = None
        self.began, self.before = self.started, 0

    def with_time_left(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message with the seconds left of the phase and of the run among its metrics, as far as they are known."""
        metrics = dict(message.get("metrics", {}))
        left = metrics.get(OF_PHASE, self._at_this_speed(message))
        elapsed = time.monotonic() - self.started
        of_run = current.seconds_left(self.output, elapsed, left) if current else None
        times = {OF_PHASE: left, OF_RUN: of_run}
        metrics |= {name: seconds for name, seconds in times.items() if seconds is not None}
        return {**message, "metrics": metrics}

    def _at_this_speed(self, message: Mapping[str, Any]) -> float | None:
        """The seconds left, from the work and the time since the first message; None if that says nothing yet."""
        now, stage = time.monotonic(), (message["total"], message["unit"])
        if stage != self.stage:  # a phase may count several things, one after the other
            self.stage, self.began, self.before = stage, now, message["done"]
        did, seconds = message["done"] - self.before, now - self.began
        # A phase that has counted all may still be doing something else: the plan knows how long the whole takes.
        if did <= 0 or seconds < _SURE_AFTER_SECONDS or message["done"] >= message["total"]:
            return None
        return float((message["total"] - message["done"]) * seconds / did)


def plan(lineage: Lineage, base: ModelVersion, prompts: PromptSet) -> None:
    """From now on show the time left of the run of this lineage."""
    global current  # noqa: PLW0603 (as `display.current`: what a run computes does not depend on it)
    current = Plan.of(lineage, base, prompts)


def finished(output: Path, seconds: float | None = None) -> None:
    """Record in the plan that a phase has ended, and after how many seconds; None if it was reused."""
    if current:
        current.finish(output, seconds)


current: Plan | None = None
"""The plan of the run of this process; None outside of runs."""
