"""What every phase does around its own work: `python -m spin_core.phases.<phase> job.json`.

`main` reads the job, returns a result that exists, keeps unfinished work of the same job, publishes, and reports:
progress as one JSON object a line on stdout, logs on stderr. Exit status: 0 done, 2 the user's input is wrong, 75 try
again, 143 stopped by SIGTERM with everything finished so far saved; anything else is a crash.

A job with several ranks is one such process too: it becomes torchrun and starts the ranks, each of which calls `main`
again. The first rank reuses, publishes and reports; the others only compute, and report the error that ends them.
"""

import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from spin_core import errors
from spin_core.errors import ConfigError, SpinError, StorageError
from spin_core.runtime import ranks, torchrun
from spin_core.runtime.process import die_with_parent
from spin_core.runtime.progress import Progress, claim_stdout
from spin_core.runtime.proxies import bypass_for_loopback
from spin_core.runtime.usage import environment, peak_memory_mb
from spin_core.store import artifacts, files
from spin_core.store.identity import digest_of, identity_of
from spin_core.store.inputs import check_inputs
from spin_core.store.jobs import Job
from spin_core.store.records import Artifact

log = logging.getLogger("spin_core")

R = TypeVar("R", bound=Artifact)

J = TypeVar("J", bound=Job)


def main(job_type: type[J], record_type: type[R], run: Callable[[J, Path, Progress], dict[str, Any]]) -> None:
    """Run one phase from its command line, and exit.

    Args:
        job_type: The class of the phase's jobs.
        record_type: The class of its records.
        run: Does the work: `run(job, scratch, progress)` writes its files into the folder `scratch`, which keeps what
            an earlier attempt at the same job left there, and returns the record's fields except path and digest.
    """
    die_with_parent()
    bypass_for_loopback()
    world = ranks.current()
    name = "" if world.size == 1 else f"rank {world.rank}: "
    logging.basicConfig(
        level=logging.INFO if world.first else logging.WARNING, format=f"{name}%(message)s", stream=sys.stderr
    )
    try:
        job = read_job(sys.argv[1:], job_type)
        if not ranks.is_rank() and (speed := job.rank_settings):
            torchrun.start_ranks(job, Path(sys.argv[1]), speed)  # ends this process
    except SpinError as error:
        exit_with(error, Progress(out=claim_stdout()), world)
    progress = Progress(out=claim_stdout(), quiet=not world.first)
    signal.signal(signal.SIGTERM, progress.stop)
    try:
        with files.storage_errors(job.output.parent):
            ranks.join(_on_gpu(job))
            execute(job, record_type, run, progress)
        ranks.leave()
    except SpinError as error:
        exit_with(error, progress, world)
    except RuntimeError:
        if (failure := world.failure()) is None:
            raise
        # Another rank, perhaps on another node, failed first, and a call that waited for it raised here.
        progress.send(failure)
        sys.exit(getattr(errors, failure["error"]).exit_code)
    finally:
        ranks.leave(failed=True)


def exit_with(error: SpinError, progress: Progress, world: ranks.Ranks) -> NoReturn:
    """Report the error to the parent and to the other ranks, and exit with its status."""
    message = {"error": type(error).__name__, "message": str(error)}
    progress.send(message)
    world.fail(message)
    log.error("%s: %s", type(error).__name__, error)
    sys.exit(error.exit_code)


def _on_gpu(job: Job) -> bool:
    """Whether the model of this rank is on a GPU."""
    if job.loaded_model is None or not ranks.is_rank():
        return False
    from spin_core.runtime.devices import device_of  # loads torch

    return device_of(job.loaded_model).type == "cuda"


def read_job(arguments: list[str], job_type: type[J]) -> J:
    """The job in the file that the command line names. `ConfigError` if that is not a job of this phase."""
    if len(arguments) != 1:
        raise ConfigError(f"a phase takes one job file, not {len(arguments)} arguments: give the path of one")
    path = Path(arguments[0])
    try:
        return job_type.model_validate_json(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a job file") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not a job of this phase ({' '.join(str(error).split())}): give another file"
        ) from error


def execute(
    job: J, record_type: type[R], run: Callable[[J, Path, Progress], dict[str, Any]], progress: Progress
) -> R | None:
    """Do the job, or find its result, and return the record; None on all ranks except the first."""
    world, identity = ranks.current(), identity_of(job)
    record = artifacts.reusable(job.output, identity, record_type) if world.first else None
    if not world.any(record is not None):
        started = time.monotonic()
        if world.first:
            check_inputs(job, job.output.parent / "jobs")
            workspace(job.output, identity)
        world.wait()
        fields = run(job, scratch_of(job.output), progress)
        usage = {
            "seconds": round(time.monotonic() - started, 3),
            "devices": world.size if job.devices is None else job.devices,
            "peak_memory_mb": peak_memory_mb(),
            "environment": environment(),
        }
        if world.first:
            record = artifacts.publish(scratch_of(job.output), job.output, identity, fields, record_type, usage=usage)
    if record is not None:
        progress.send({"record": record.model_dump(mode="json")})
    return record


def scratch_of(output: Path) -> Path:
    """The folder of a job's unfinished work."""
    return output.with_name(f".{output.name}.partial")


def workspace(output: Path, identity: Mapping[str, Any]) -> Path:
    """Create the scratch folder of the job with this identity. What another job left there is removed.

    Raises:
        StorageError: The disk is full.
    """
    scratch = scratch_of(output)
    stamp = output.with_name(f".{output.name}.identity")
    digest = digest_of(identity)
    if not _is_stamped(stamp, digest):
        if scratch.exists():
            log.warning("%s is removed: its unfinished work is another job's, or %s is damaged", scratch, stamp.name)
        for leftover in (scratch, *output.parent.glob(f".{output.name}.*.work"), stamp):
            files.remove(leftover)
        # Before the folder, and never again: a kill at any moment leaves no work whose owner is unknown.
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(stamp, digest)
    scratch.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(scratch).free < 2**20:
        raise StorageError(
            f"the disk that holds {scratch.parent} is full: free some space and run the same command again"
        )
    return scratch


def _is_stamped(stamp: Path, digest: str) -> bool:
    """Whether the unfinished work next to this file is that of the job with this digest."""
    try:
        return stamp.read_bytes() == digest.encode()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
