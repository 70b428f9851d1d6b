"""Starting phases: the only place where command lines are built, but for torchrun's (`torchrun.py`).

A phase runs in a process group of its own that ends with the one that started it, whichever way that ends. A training
or a scoring of several ranks is such a phase, which becomes torchrun and starts a process for each rank.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from spin_core import errors
from spin_core.config.generate import VllmConfig
from spin_core.runtime.grace import grace_of
from spin_core.runtime.interpreter import required_python
from spin_core.runtime.process import end_group, end_leftover, guard, spawn, start_time
from spin_core.runtime.warm import warm
from spin_core.store import artifacts, files
from spin_core.store.identity import identity_of
from spin_core.store.job_types import JOB_TYPES
from spin_core.store.jobs import GenerateJob, Job
from spin_core.store.records import Artifact

R = TypeVar("R", bound=Artifact)

Listener = Callable[[Mapping[str, Any]], None]
"""Called with each progress message: `{"done", "total", "unit", "metrics"}`."""


def command(job_file: Path, phase: str) -> list[str]:
    """The command line of a phase."""
    return [_interpreter(job_file, phase), "-m", f"spin_core.phases.{phase}", str(job_file)]


def _interpreter(job_file: Path, phase: str) -> str:
    """The interpreter of a phase: this one, or that of vLLM's virtual environment if vLLM runs the model."""
    kind = (
        GenerateJob if phase == "join" else JOB_TYPES.get(phase)
    )  # `join` takes the job file of the generation it joins
    if kind is None or not kind.engine_in:
        return sys.executable
    config = json.loads(job_file.read_text("utf-8"))[kind.engine_in]
    if config["engine"] != "vllm":
        return sys.executable
    return str(required_python(VllmConfig.model_validate(config["vllm"]), kind.engine_setting))


def job_path(job: Job) -> Path:
    """Where the job file of an output lies: `iter_01/jobs/train.json` for `iter_01/train`."""
    return job.output.parent / "jobs" / f"{job.output.name}.json"


def write_job(job: Job) -> Path:
    """Write the job file."""
    path = job_path(job)
    with files.storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, job.model_dump(mode="json"))
    return path


def finished(job: Job, kind: type[R]) -> R | None:
    """The record of a job that is done already; None if it is not."""
    return artifacts.reusable(job.output, identity_of(job), kind)


def run_phase(
    job: Job,
    kind: type[R],
    on_progress: Listener = lambda _: None,
    on_log: Callable[[str], None] = lambda _: None,
) -> R:
    """Run one phase in a process of its own and return its record.

    Raises the `SpinError` that the phase raised, or `errors.PhaseCrashed`. Whatever ends this call, the phase's process
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
    cure = f" {job.less_memory}, and the same lineage goes on" if job.less_memory else ""
    hint = f" (out of memory?{cure})" if starved else ""
    raise errors.PhaseCrashed(
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
            with files.storage_errors(pid_file.parent):
                pid_file.write_text(f"{process.pid} {start_time(process.pid)}", "utf-8")
            yield process
        finally:
            end_group(process, grace)
            pid_file.unlink(missing_ok=True)


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
