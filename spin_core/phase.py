"""The frame around every phase: `python -m spin_core.<phase> job.json`.

Reads the job, reuses what is built, keeps unfinished work of the same job, publishes, and reports: progress as one
JSON object a line on stdout, logs on stderr. Exit status: 0 done, 2 the user's input is wrong, 75 try again,
143 stopped by SIGTERM with everything finished so far saved; anything else is a crash.

A training of several ranks is one such process too: it starts the ranks, each of which comes here again, and ends as
they do. The first rank reuses, publishes and reports; the others only take part, and report what ends them.
"""

import ctypes
import json
import logging
import os
import platform
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from spin_core import errors, ranks, store, torchrun
from spin_core.devices import devices_of
from spin_core.errors import STOPPED, ConfigError, SpinError, Stopped, StorageError
from spin_core.jobs import Job
from spin_core.records import Artifact

J = TypeVar("J", bound=Job)
R = TypeVar("R", bound=Artifact)

log = logging.getLogger("spin_core")


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


def main(job_type: type[J], record_type: type[R], run: Callable[[J, Path, Progress], dict[str, Any]]) -> None:
    """Run one phase from its command line.

    `run(job, scratch, progress)` writes its files into `scratch`, which keeps what an earlier attempt at the same
    job left there, and returns the record's fields but for path and digest.
    """
    die_with_parent()
    us = ranks.here()
    name = "" if us.size == 1 else f"rank {us.rank}: "
    logging.basicConfig(
        level=logging.INFO if us.first else logging.WARNING, format=f"{name}%(message)s", stream=sys.stderr
    )
    try:
        job = read_job(sys.argv[1:], job_type)
        if not ranks.inside() and (speed := torchrun.speed_of(job)):
            torchrun.start_ranks(job, Path(sys.argv[1]), speed)  # ends this process
    except SpinError as error:
        end(error, Progress(out=claim_stdout()), us)
    progress = Progress(out=claim_stdout(), quiet=not us.first)
    signal.signal(signal.SIGTERM, progress.stop)
    try:
        with store.storage_errors(job.output.parent):
            ranks.meet(on_gpu(job))
            execute(job, record_type, run, progress)
        ranks.part()
    except SpinError as error:
        end(error, progress, us)
    except RuntimeError:
        if (failure := us.failure()) is None:
            raise
        # Another rank, perhaps on another node, ended first, and said why.
        progress.say(failure)
        sys.exit(getattr(errors, failure["error"]).exit_code)
    finally:
        ranks.part(failed=True)


def end(error: SpinError, progress: Progress, us: ranks.Ranks) -> NoReturn:
    """Report the error and exit as it says."""
    message = {"error": type(error).__name__, "message": str(error)}
    progress.say(message)
    us.fail(message)
    log.error("%s: %s", type(error).__name__, error)
    sys.exit(error.exit_code)


def on_gpu(job: Job) -> bool:
    """Whether the job's model will be on a GPU."""
    model = getattr(job, "model", None)
    if model is None or not ranks.inside():
        return False
    from spin_core.models import device_of

    return device_of(model).type == "cuda"


def claim_stdout() -> TextIO:
    """What was stdout, for the protocol alone: all else that is printed, be it from C or by a child, goes to stderr."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return ours


def read_job(arguments: list[str], job_type: type[J]) -> J:
    """The job in the file that the command line names."""
    if len(arguments) != 1:
        raise ConfigError(f"a phase takes one job file, and was given {len(arguments)} arguments")
    path = Path(arguments[0])
    try:
        return job_type.model_validate_json(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a job file") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no job for this phase: {' '.join(str(error).split())}") from error


def execute(
    job: J, record_type: type[R], run: Callable[[J, Path, Progress], dict[str, Any]], progress: Progress
) -> R | None:
    """Do the job, or find it done. None on all ranks but the first."""
    us, asked = ranks.here(), job.model_dump(mode="json")
    record = store.reusable(job.output, asked, record_type) if us.first else None
    if not us.any(record is not None):
        started = time.monotonic()
        if us.first:
            workspace(job.output, asked)
        us.wait()
        fields = run(job, scratch_of(job.output), progress)
        usage = {
            "seconds": round(time.monotonic() - started, 3),
            "devices": devices_of(job, us.size),
            "peak_memory_mb": peak_memory_mb(),
            "environment": environment(),
        }
        if us.first:
            record = store.publish(scratch_of(job.output), job.output, asked, fields, record_type, usage=usage)
    if record is not None:
        progress.say({"record": record.model_dump(mode="json")})
    return record


def scratch_of(output: Path) -> Path:
    """Where a job's unfinished work lies."""
    return output.with_name(f".{output.name}.partial")


def workspace(output: Path, asked: Mapping[str, Any]) -> Path:
    """The scratch folder of a job. What an attempt at another job left there is removed."""
    scratch = scratch_of(output)
    stamp = output.with_name(f".{output.name}.identity")
    identity = store.digest_of(store.identity_of(asked))
    if scratch.exists() and (not stamp.exists() or stamp.read_text("utf-8") != identity):
        shutil.rmtree(scratch)
        for work in output.parent.glob(f".{output.name}.*.work"):
            shutil.rmtree(work)
    scratch.mkdir(parents=True, exist_ok=True)
    stamp.write_text(identity, "utf-8")
    if shutil.disk_usage(scratch).free < 2**20:
        raise StorageError(
            f"the disk that holds {scratch.parent} is full: free some space and run the same command again"
        )
    return scratch


def peak_memory_mb() -> float:
    """The most memory that this process has had: allocated on its GPU if it computes on one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return round(float(torch.cuda.max_memory_allocated()) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def environment() -> dict[str, str]:
    """What did the work: versions of the packages that this phase loaded, and its device."""
    packages = ("torch", "transformers", "datasets", "lm_eval", "numpy", "pyarrow", "vllm", "deepspeed")
    found = {name: installed_version(name) for name in packages if name in sys.modules}
    found["python"] = platform.python_version()
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    found["device"] = torch.cuda.get_device_name() if torch is not None and on_gpu else f"CPU {platform.machine()}"
    return found


def installed_version(name: str) -> str:
    """The version of a package that is loaded; its own word for it where it was installed under another name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules[name], "__version__", "unknown"))


def die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it ends, so that no GPU is held by an orphan."""
    if sys.platform != "linux" or "SPIN_PARENT" not in os.environ:
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["SPIN_PARENT"]):
        sys.exit(1)  # the parent ended before the kernel was asked
