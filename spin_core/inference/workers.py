"""Start and join the workers that answer one set of prompts."""

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


@contextlib.contextmanager
def helpers(job: Job, folder: Path, environments: Sequence[Mapping[str, str]]) -> Iterator[Callable[[], None]]:
    """A worker on this machine for each of these environments, while this lasts.

    Gives what asks them to finish their shards and end. At the end, with all shards there, nothing is left to finish.
    """
    job_file = folder / "job.json"
    files.write_json(job_file, job.model_dump(mode="json"))
    processes = [start_worker(job_file, number, one) for number, one in enumerate(environments, start=2)]

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


WORKER = "SPIN_WORKER"
"""The number of a worker that a generation has started on its machine, from 2."""


def start_worker(job_file: Path, number: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """One more worker on the generation in a job file, in our process group. It ends when we do."""
    ours = {"SPIN_PARENT": str(os.getpid()), WORKER: str(number)}
    return subprocess.Popen(
        [sys.executable, "-m", "spin_core.phases.join", str(job_file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**DEFAULTS, **os.environ, **environment, **ours},
    )


def join_generation(job_file: Path) -> None:
    """Be a worker on a generation that another process has begun or will begin, until all its shards are there.

    Raises `PhaseCrashed`, with the last lines of its log, if the worker ends in another way.
    """
    with spawn(command(job_file, "join"), stdin=subprocess.DEVNULL) as process:
        try:
            _, said = process.communicate()
        finally:
            end_group(process)
    if process.returncode:
        tail = "\n".join(said.splitlines()[-20:])
        raise PhaseCrashed(f"a worker on {job_file} ended with status {process.returncode}\n{tail}")
