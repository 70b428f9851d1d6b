"""A process that loads what the next phase needs while the current phase runs."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from spin_core.runtime.process import end_group, spawn

_LIGHT = ("pairs",)
"""Phases that load nothing heavy."""


class WarmProcess:
    """At most one process that has loaded what a phase needs and waits for a job (see `spin_core.phases.warm`)."""

    def __init__(self) -> None:
        self._wanted = False
        self._process: subprocess.Popen[str] | None = None

    @contextlib.contextmanager
    def enabled(self) -> Iterator[None]:
        """Within this context, a process for the next phase is started once the current phase reports progress."""
        self._wanted = True
        try:
            yield
        finally:
            self._wanted = False
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.communicate()

    def prepare(self) -> None:
        """Start a process for the next phase, within the context of `enabled` and if none is waiting."""
        if self._wanted and self._process is None:
            self._process = spawn([sys.executable, "-m", "spin_core.phases.warm"], stdin=subprocess.PIPE)

    def take(self, phase: str, job_file: Path) -> subprocess.Popen[str] | None:
        """Give the waiting process its job; None if none waits, or if the phase starts fast anyway."""
        if self._process is None or phase in _LIGHT:
            return None
        process, self._process = self._process, None
        assert process.stdin is not None
        try:
            process.stdin.write(f"{phase}\t{job_file}\n")
            process.stdin.close()
        except BrokenPipeError:  # it has ended; the caller starts the phase without it
            with process:
                end_group(process)
            return None
        return process


warm_process = WarmProcess()
"""The one of this program."""
