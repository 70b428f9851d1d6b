"""Starting phases: the only place where command lines are built, but for torchrun's (`torchrun.py`).

A phase runs in a process group of its own that ends with the one that started it, whichever way that ends. A training
or a scoring of several ranks is such a phase, which becomes torchrun and starts a process for each rank.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from spin_core import engines, errors, store
from spin_core.config import VllmConfig
from spin_core.jobs import Job, TrainJob
from spin_core.records import Artifact

R = TypeVar("R", bound=Artifact)

log = logging.getLogger("spin_core")

Listener = Callable[[Mapping[str, Any]], None]
"""Called with each progress message: `{"done", "total", "unit", "metrics"}`."""

DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait make everyone slow on a shared machine
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_MININTERVAL": "10",
}
"""The environment of a phase, where ours does not say otherwise."""

NODE_RANK = "SPIN_NODE_RANK"
"""Which node this is, from 0, when several train together. Node 0 is the one that runs the flow."""

WORKER = "SPIN_WORKER"
"""The number of a worker that a generation has started on its machine, from 2."""

ENGINES = {"generate": "config", "shards": "config", "benchmark": "config", "mt_bench": "generate"}
"""Phases that vLLM may run, and under what name their jobs say with which engine."""

GRACE_SECONDS = 30.0
"""How long a phase may take to save its work after SIGTERM, before it is killed, unless `GRACE` says otherwise."""

LONGEST_GRACE_SECONDS = 900.0
"""What no phase exceeds unless `GRACE` says so; whoever ends what has started a phase waits for longer."""

GRACE = "SPIN_GRACE"
"""The seconds that a phase is given, where whoever ends us allows as many."""

STATES, DISK_BYTES_A_SECOND = 6, 200e6
"""A training's checkpoint in bytes over those of its weights, at the most (bfloat16, AdamW); and what a disk takes."""


LESS = {
    "train": " lower train.micro_batch_tokens or set train.gradient_checkpointing, and the same lineage goes on",
    "score": " lower train.micro_batch_tokens, and the same lineage goes on",
}
"""How a phase gets along with less memory."""


class PhaseCrashed(Exception):
    """A phase ended in a way that is no user's fault. The message ends with the last lines of its log."""


def command(job_file: Path, phase: str) -> list[str]:
    """The command line of a phase."""
    return [interpreter(job_file, phase), "-m", f"spin_core.{phase}", str(job_file)]


def interpreter(job_file: Path, phase: str) -> str:
    """What runs a phase: our own interpreter, or where vLLM is to answer that of its own virtual environment."""
    if phase not in ENGINES:
        return sys.executable
    config = json.loads(job_file.read_text("utf-8"))[ENGINES[phase]]
    if config["engine"] != "vllm":
        return sys.executable
    setting = "evaluate.lm_eval.engine" if phase == "benchmark" else "generate.engine"
    return str(engines.required_python(VllmConfig.model_validate(config["vllm"]), setting))


def job_path(job: Job) -> Path:
    """Where the job file of an output lies: `iter_01/jobs/train.json` for `iter_01/train`."""
    return job.output.parent / "jobs" / f"{job.output.name}.json"


def write_job(job: Job) -> Path:
    """Write the job file."""
    path = job_path(job)
    with store.storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(path, job.model_dump(mode="json"))
    return path


def finished(job: Job, kind: type[R]) -> R | None:
    """The record of a job that is done already; None if it is not."""
    return store.reusable(job.output, job.model_dump(mode="json"), kind)


def run_phase(
    job: Job,
    kind: type[R],
    on_progress: Listener = lambda _: None,
    on_log: Callable[[str], None] = lambda _: None,
) -> R:
    """Run one phase in a process of its own and return its record.

    Raises the `SpinError` that the phase raised, or `PhaseCrashed`. Whatever ends this call, the phase's process
    group has ended when it returns.
    """
    path, grace = write_job(job), grace_of(job)
    end_leftover(path)
    tail: deque[str] = deque(maxlen=20)
    last: dict[str, Any] = {}
    with started(job.phase, path, grace) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(target=read_log, args=(process.stderr, tail, on_log), daemon=True)
        reader.start()
        for line in process.stdout:
            message = parse(line)
            if "done" in message:
                warm.prepare()
                on_progress(message)
            elif "error" not in last:  # the first rank's error to be told is the cause of the others'
                last = message
        status = process.wait()
        end_group(process, grace)  # children that it left behind would hold its log open
        reader.join()
    if status == 0 and "record" in last:
        return kind.model_validate(last["record"])
    if "error" in last:
        error: type[errors.SpinError] = getattr(errors, last["error"], errors.SpinError)
        raise error(last["message"])
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    starved = status == -signal.SIGKILL or any("OutOfMemoryError" in line for line in tail)
    hint = f" (out of memory?{LESS.get(job.phase, '')})" if starved else ""
    raise PhaseCrashed(
        f"phase {job.phase} {how}{hint}; run it alone with: {' '.join(command(path, job.phase))}\n" + "\n".join(tail)
    )


@contextlib.contextmanager
def started(phase: str, job_file: Path, grace: float) -> Iterator[subprocess.Popen[str]]:
    """The process of a phase, in a group of its own, which is ended on the way out."""
    words = command(job_file, phase)
    process = (words[0] == sys.executable and warm.take(phase, job_file)) or spawn(words, stdin=subprocess.DEVNULL)
    pid_file = job_file.with_suffix(".pid")
    with process, guard(process.pid):
        try:
            with store.storage_errors(pid_file.parent):
                pid_file.write_text(f"{process.pid} {birth(process.pid)}", "utf-8")
            yield process
        finally:
            end_group(process, grace)
            pid_file.unlink(missing_ok=True)


def spawn(arguments: list[str], *, stdin: int, stderr: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    """A process that leads a group of its own and asks the kernel to end it with us."""
    return subprocess.Popen(
        arguments,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",  # a library may log anything, and a reader that gave up would leave the pipe full
        process_group=0,
        env={**DEFAULTS, **os.environ, "SPIN_PARENT": str(os.getpid())},
    )


class Warm:
    """At most one process that has loaded what a phase needs, and waits for its job (see `spin_core.warm`)."""

    def __init__(self) -> None:
        self._wanted = False
        self._process: subprocess.Popen[str] | None = None

    @contextlib.contextmanager
    def phases(self) -> Iterator[None]:
        """While this lasts, the process of the next phase is made ready as soon as the present one is at work."""
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
        """Start a process for the next phase, if phases are to be kept warm and none is waiting."""
        if self._wanted and self._process is None:
            self._process = spawn([sys.executable, "-m", "spin_core.warm"], stdin=subprocess.PIPE)

    def take(self, phase: str, job_file: Path) -> subprocess.Popen[str] | None:
        """The waiting process, told its job; None if none waits, or if the phase loads nothing heavy."""
        if self._process is None or phase in LIGHT:
            return None
        process, self._process = self._process, None
        assert process.stdin is not None
        try:
            process.stdin.write(f"{phase}\t{job_file}\n")
            process.stdin.close()
        except BrokenPipeError:  # it ended while it waited: the phase starts cold
            with process:
                end_group(process)
            return None
        return process


warm = Warm()
LIGHT = ("pairs",)
"""Phases that start at once without help."""


def guard(group: int) -> subprocess.Popen[bytes]:
    """A process in the group that waits for our end, and then ends the group: even kill -9 closes our side of a pipe.

    The phase itself asks the kernel for as much, but its own children do not.
    """
    return subprocess.Popen(["sh", "-c", "read -r _; kill -9 0"], stdin=subprocess.PIPE, process_group=group)


def start_worker(job_file: Path, number: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """One more worker on the generation in a job file, in our process group. It ends when we do."""
    ours = {"SPIN_PARENT": str(os.getpid()), WORKER: str(number)}
    return subprocess.Popen(
        [sys.executable, "-m", "spin_core.shards", str(job_file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**DEFAULTS, **os.environ, **environment, **ours},
    )


def join_generation(job_file: Path) -> None:
    """Be a worker on a generation that another process has begun or will begin, until all its shards are there.

    Raises `PhaseCrashed`, with the last lines of its log, if the worker ends in another way.
    """
    with spawn(command(job_file, "shards"), stdin=subprocess.DEVNULL) as process:
        try:
            _, said = process.communicate()
        finally:
            end_group(process)
    if process.returncode:
        tail = "\n".join(said.splitlines()[-20:])
        raise PhaseCrashed(f"a worker on {job_file} ended with status {process.returncode}\n{tail}")


def environments(workers: int, devices: int, each: int = 1) -> list[dict[str, str]]:
    """What tells each worker on this machine which `each` of its GPUs to take, or how many threads without any.

    Where there are fewer devices than workers, they share.
    """
    if not devices:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // max(1, workers))))
        return [{"OMP_NUM_THREADS": threads} for _ in range(workers)]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else [str(number) for number in range(devices)]
    groups = [names[first : first + each] for first in range(0, len(names) - each + 1, each)] or [names]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(groups[number % len(groups)])} for number in range(workers)]


def grace_of(job: Job) -> float:
    """How long this phase may take to save its work after SIGTERM: a training has to write a whole checkpoint."""
    if (told := told_grace()) is not None:
        return told
    weights = job.start.path.rglob("*.safetensors") if isinstance(job, TrainJob) else ()
    seconds = GRACE_SECONDS + STATES * sum(file.stat().st_size for file in weights) / DISK_BYTES_A_SECOND
    return min(seconds, LONGEST_GRACE_SECONDS)


def longest_grace() -> float:
    """How long any phase may take to save its work after SIGTERM."""
    return LONGEST_GRACE_SECONDS if (told := told_grace()) is None else told


def told_grace() -> float | None:
    """What the environment says; `ConfigError` if that is no number."""
    told = os.environ.get(GRACE)
    try:
        return float(told) if told else None
    except ValueError as error:
        raise errors.ConfigError(f"{GRACE} is {told!r}: give seconds, or unset it") from error


def end_group(process: subprocess.Popen[str], grace: float | None = None) -> None:
    """Ask the process to save and end, within so many seconds, and kill what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS if grace is None else grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_leftover(job_file: Path) -> None:
    """End the process group that an earlier, killed run of this very job left behind."""
    pid_file = job_file.with_suffix(".pid")
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        number, born = pid_file.read_text("utf-8").split()
        pid = int(number)
        if birth(pid) == born:  # else the number belongs to another program by now
            os.killpg(pid, signal.SIGKILL)
            while birth(pid) == born:
                time.sleep(0.05)
    pid_file.unlink(missing_ok=True)


def birth(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else fields[18]


def read_log(stream: Any, tail: deque[str], on_log: Callable[[str], None]) -> None:
    """Pass each line of a phase's log on, and keep the last ones."""
    for line in stream:
        text = line.rstrip()
        if text:
            tail.append(text)
            on_log(text)


def parse(line: str) -> dict[str, Any]:
    """A message of the protocol; anything else that came on stdout is nothing."""
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}
