"""Start workers on this machine for a generation."""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from spin_core.errors import PhaseCrashed
from spin_core.runtime.launch import command
from spin_core.runtime.process import DEFAULTS, end_group, spawn
from spin_core.store import files
from spin_core.store.jobs import Job

log = logging.getLogger("spin_core")

WORKER_VARIABLE = "SPIN_WORKER"
"""The environment variable with the number, from 2, of a worker that a generation has started on its machine."""


@contextlib.contextmanager
def helpers(job: Job, folder: Path, environments: Sequence[Mapping[str, str]]) -> Iterator[Callable[[], None]]:
    """Run one more worker on this machine for each of these environments, as a context manager.

    Yields:
        A function that asks the workers to finish their shards and end.

    On leaving, all shards exist, so workers that still run have nothing to finish and are killed.
    """
    job_file = folder / "job.json"
    files.write_json(job_file, job.model_dump(mode="json"))
    processes = [_start_worker(job_file, number, env) for number, env in enumerate(environments, start=2)]

    def stop() -> None:
        for process in processes:
            if process.poll() is None:
                process.terminate()

    try:
        yield stop
    except BaseException:
        stop()
        raise
    else:
        for number, process in enumerate(processes, start=2):
            if process.poll() not in (None, 0):
                log.warning("worker %d ended with status %d; others did its work", number, process.returncode)
            process.kill()
    finally:
        for process in processes:
            process.wait()


def join_generation(job_file: Path) -> None:
    """Run a worker on a generation that another process has begun or will begin, until all shards exist.

    Raises:
        PhaseCrashed: The worker failed; the error has the last lines of its log.
    """
    with spawn(command(job_file, "join"), stdin=subprocess.DEVNULL) as process:
        try:
            _, stderr = process.communicate()
        finally:
            end_group(process)
    if process.returncode:
        tail = "\n".join(stderr.splitlines()[-20:])
        raise PhaseCrashed(f"a worker on {job_file} ended with status {process.returncode}\n{tail}")


def _start_worker(job_file: Path, number: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker in this process's group. It ends when this process does."""
    own = {"SPIN_PARENT": str(os.getpid()), WORKER_VARIABLE: str(number)}
    return subprocess.Popen(
        [sys.executable, "-m", "spin_core.phases.join", str(job_file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**DEFAULTS, **os.environ, **environment, **own},
    )
