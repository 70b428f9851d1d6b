"""Sending a lineage's metrics to TensorBoard, W&B and MLflow during a run."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO

from prefect.logging import get_run_logger

from spin_core.lineage.lineage import Lineage
from spin_core.runtime import process as runtime_process
from spin_core.tracking.points import folder_of
from tasks import display

GRACE_SECONDS = 60.0
"""How long sinks may take at the end of a run for the remaining points."""
HURRIED_SECONDS = 5.0
"""The same for a run that failed or was stopped."""


@contextlib.contextmanager
def send_metrics(lineage: Lineage) -> Iterator[None]:
    """Run a process that sends the lineage's metrics. Its failure does not end the run."""
    if not lineage.config.metrics.sinks:
        yield
        return
    logger = get_run_logger()

    def note(text: str) -> None:
        display.current.noted(text)
        logger.warning("%s", text)

    def read(out: IO[str]) -> None:
        for line in out:
            note(line.rstrip("\n"))

    folder_of(lineage).mkdir(parents=True, exist_ok=True)
    with (folder_of(lineage) / "log.txt").open("w", encoding="utf-8") as log:
        process = runtime_process.spawn(
            [sys.executable, "-m", "spin_core.tracking.follow", str(lineage.runs), lineage.name],
            stdin=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    reader.start()
    grace = HURRIED_SECONDS
    try:
        yield
        grace = GRACE_SECONDS
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            runtime_process.end_group(process)
            note(f"metrics: not all were sent within {grace:.0f} s; the next run sends the rest")
        reader.join(1.0)
        process.stdout.close()
        if process.returncode > 0:
            note(f"metrics: the process that sends them ended with {process.returncode}: see {log.name}")
