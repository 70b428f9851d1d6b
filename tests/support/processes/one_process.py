"""The `spin` command with all phases in its own process: for tests of results, not of how phases are started.

A phase's process spends seconds on loading torch, while a phase of a small run computes for a tenth of a second.
"""

import importlib
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from flows.command_line import main
from spin_core.runtime import launch, phase, progress
from spin_core.store.jobs import Job
from spin_core.store.records import Artifact

R = TypeVar("R", bound=Artifact)


class ListenedProgress(progress.Progress):
    """Progress that is reported to a listener, not to a pipe."""

    def __init__(self, listener: launch.Listener) -> None:
        super().__init__()
        self.listener = listener

    def say(self, message: Mapping[str, Any]) -> None:
        if "done" in message:
            self.listener(message)


def run_phase(job: Job, kind: type[R], on_progress: launch.Listener, *_: Any) -> R:
    """Run the phase in this process: write its job file, run its module, publish its output."""
    launch.write_job(job)
    record = phase.execute(
        job, kind, importlib.import_module(f"spin_core.phases.{job.phase}").run, ListenedProgress(on_progress)
    )
    assert record is not None, "one process is the first of its ranks"
    return record


if __name__ == "__main__":
    launch.run_phase = run_phase
    main.main(sys.argv[1:])
