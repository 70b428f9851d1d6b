"""The frame around every phase: `python -m spin_core.<phase> job.json`.

Reads the job, reuses what is built, keeps unfinished work of the same job, publishes, and reports: progress as one
JSON object a line on stdout, logs on stderr. Exit status: 0 done, 2 the user's input is wrong, 75 try again,
143 stopped by SIGTERM with everything finished so far saved; anything else is a crash.
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
from typing import Any, TextIO, TypeVar

from spin_core import store
from spin_core.errors import STOPPED, ConfigError, SpinError, Stopped, StorageError
from spin_core.jobs import Job
from spin_core.records import Artifact

J = TypeVar("J", bound=Job)
R = TypeVar("R", bound=Artifact)

log = logging.getLogger("spin_core")


class Progress:
    """What a phase tells while it works, at most four times a second, and whether it has been asked to stop."""

    def __init__(self, unit: str = "item", total: int = 0, out: TextIO | None = None) -> None:
        self.unit, self.total = unit, total
        self._stop = False
        self._told = 0.0
        self._out = out or sys.stdout

    def start(self, total: int, unit: str) -> None:
        """Say how much there is to do."""
        self.unit, self.total = unit, total
        self._told = 0.0

    def tell(self, done: int, **metrics: float) -> None:
        """Report `done` of the total. Raises `Stopped` if SIGTERM arrived: call it where everything is saved."""
        self.show(done, **metrics)
        self.check()

    def show(self, done: int, **metrics: float) -> None:
        """Report `done` of the total, and nothing else."""
        now = time.monotonic()
        if now - self._told > 0.25 or done == self.total:
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
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    progress = Progress(out=claim_stdout())
    signal.signal(signal.SIGTERM, progress.stop)
    try:
        job = read_job(sys.argv[1:], job_type)
        with store.storage_errors(job.output.parent):
            execute(job, record_type, run, progress)
    except SpinError as error:
        progress.say({"error": type(error).__name__, "message": str(error)})
        log.error("%s: %s", type(error).__name__, error)
        sys.exit(error.exit_code)


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


def execute(job: J, record_type: type[R], run: Callable[[J, Path, Progress], dict[str, Any]], progress: Progress) -> R:
    """Do the job, or find it done."""
    asked = job.model_dump(mode="json")
    record = store.reusable(job.output, asked, record_type)
    if record is None:
        started = time.monotonic()
        scratch = workspace(job.output, asked)
        fields = run(job, scratch, progress)
        usage = {
            "seconds": round(time.monotonic() - started, 3),
            "peak_memory_mb": peak_memory_mb(),
            "environment": environment(),
        }
        record = store.publish(scratch, job.output, asked, fields, record_type, usage=usage)
    progress.say({"record": record.model_dump(mode="json")})
    return record


def workspace(output: Path, asked: Mapping[str, Any]) -> Path:
    """The scratch folder of a job. What an attempt at another job left there is removed."""
    scratch = output.with_name(f".{output.name}.partial")
    stamp = output.with_name(f".{output.name}.identity")
    identity = store.digest_of(store.identity_of(asked))
    if scratch.exists() and (not stamp.exists() or stamp.read_text("utf-8") != identity):
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    stamp.write_text(identity, "utf-8")
    if shutil.disk_usage(scratch).free < 2**20:
        raise StorageError(
            f"the disk that holds {scratch.parent} is full: free some space and run the same command again"
        )
    return scratch


def peak_memory_mb() -> float:
    """The largest resident memory that this process has had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def environment() -> dict[str, str]:
    """What did the work: versions of the packages that this phase loaded, and its device."""
    packages = ("torch", "transformers", "datasets", "lm_eval", "numpy", "pyarrow", "vllm", "deepspeed")
    found = {name: metadata.version(name) for name in packages if name in sys.modules}
    found["python"] = platform.python_version()
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    found["device"] = torch.cuda.get_device_name() if torch is not None and on_gpu else f"CPU {platform.machine()}"
    return found


def die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it ends, so that no GPU is held by an orphan."""
    if sys.platform != "linux" or "SPIN_PARENT" not in os.environ:
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["SPIN_PARENT"]):
        sys.exit(1)  # the parent ended before the kernel was asked
