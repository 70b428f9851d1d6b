"""Start phases as processes and return their records.

The command lines of phases are built here alone, except torchrun's (`torchrun.py`). A phase runs in its own process
group, which ends when the process that started it ends, however that happens. A training or scoring with several ranks
is started in the same way: its process becomes torchrun and starts the ranks.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from spin_core import errors
from spin_core.config.generate import VllmConfig
from spin_core.runtime.grace import grace_of
from spin_core.runtime.interpreter import required_python
from spin_core.runtime.process import end_group, end_leftover, guard, spawn, start_time
from spin_core.runtime.warm import warm_process
from spin_core.store import artifacts, files
from spin_core.store.identity import identity_of
from spin_core.store.job_types import JOB_TYPES
from spin_core.store.jobs import GenerateJob, Job
from spin_core.store.records import Artifact

R = TypeVar("R", bound=Artifact)

Listener = Callable[[Mapping[str, Any]], None]
"""Called with each progress message: `{"done", "total", "unit", "metrics"}`."""

_TAIL_LINES = 20
"""How many of the last lines of a phase's log an error message contains."""


def run_phase(
    job: Job,
    kind: type[R],
    on_progress: Listener = lambda _: None,
    on_log: Callable[[str], None] = lambda _: None,
) -> R:
    """Run the phase of a job in a process of its own and return its record.

    The phase's process group has ended when this call returns, even by an exception.

    Args:
        job: What to do.
        kind: The class of its record.
        on_progress: Called with each progress message.
        on_log: Called with each line of the log, from another thread.

    Raises:
        SpinError: The error that the phase raised.
        PhaseCrashed: The phase ended in any other way.
    """
    path, grace = write_job(job), grace_of(job)
    end_leftover(path)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    last: dict[str, Any] = {}
    with _started(job.phase, path, grace) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(target=_read_log, args=(process.stderr, tail, on_log), daemon=True)
        reader.start()
        for line in process.stdout:
            message = parse_message(line)
            if "done" in message:
                warm_process.prepare()
                on_progress(message)
            elif "error" not in last:  # of several ranks' errors the first is the cause of the others
                last = message
        status = process.wait()
        # Children that the phase left behind would hold its log open, and the reader would wait for them.
        end_group(process, grace)
        reader.join()
    if status == 0 and "record" in last:
        return kind.model_validate(last["record"])
    if "error" in last:
        error: type[errors.SpinError] = getattr(errors, last["error"], errors.SpinError)
        raise error(last["message"])
    raise errors.PhaseCrashed(_crash_message(job, path, status, tail))


def finished_record(job: Job, kind: type[R]) -> R | None:
    """The record of a job that is already done; None if it is not."""
    return artifacts.reusable(job.output, identity_of(job), kind)


def job_path(job: Job) -> Path:
    """The path of a job's file: `iter_01/jobs/train.json` for the output `iter_01/train`."""
    return job.output.parent / "jobs" / f"{job.output.name}.json"


def write_job(job: Job) -> Path:
    """Write the job's file and return its path."""
    path = job_path(job)
    with files.storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, job.model_dump(mode="json"))
    return path


def command(job_file: Path, phase: str) -> list[str]:
    """The command line that runs a module of `spin_core.phases` on a job file.

    Raises:
        ConfigError: The phase needs vLLM's environment, which is not installed.
    """
    return [_interpreter(job_file, phase), "-m", f"spin_core.phases.{phase}", str(job_file)]


def _interpreter(job_file: Path, phase: str) -> str:
    """The interpreter of a phase: this one, or that of vLLM's virtual environment if vLLM runs the model."""
    # `join` is not a phase with jobs of its own: it takes the job file of the generation that it joins.
    kind = GenerateJob if phase == "join" else JOB_TYPES.get(phase)
    if kind is None or not kind.engine_in:
        return sys.executable
    config = json.loads(job_file.read_text("utf-8"))[kind.engine_in]
    if config["engine"] != "vllm":
        return sys.executable
    return str(required_python(VllmConfig.model_validate(config["vllm"]), kind.engine_setting))


@contextlib.contextmanager
def _started(phase: str, job_file: Path, grace: float) -> Iterator[subprocess.Popen[str]]:
    """The process of a phase, in a group of its own, which is ended when the context ends."""
    arguments = command(job_file, phase)
    ready = warm_process.take(phase, job_file) if arguments[0] == sys.executable else None
    process = ready or spawn(arguments, stdin=subprocess.DEVNULL)
    pid_file = job_file.with_suffix(".pid")
    with process, guard(process.pid):
        try:
            with files.storage_errors(pid_file.parent):
                pid_file.write_text(f"{process.pid} {start_time(process.pid)}", "utf-8")
            yield process
        finally:
            end_group(process, grace)
            pid_file.unlink(missing_ok=True)


def _read_log(stream: TextIO, tail: deque[str], on_log: Callable[[str], None]) -> None:
    """Pass on each line of a phase's log, and keep the last ones."""
    for line in stream:
        text = line.rstrip()
        if text:
            tail.append(text)
            on_log(text)


def parse_message(line: str) -> dict[str, Any]:
    """The message in a line of a phase's output; empty if the line is anything else, printed by a library."""
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}


def _crash_message(job: Job, path: Path, status: int, tail: Sequence[str]) -> str:
    """How a phase ended that reported neither a record nor an error, what may help, and the end of its log."""
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    # The kernel kills a process that takes too much memory; torch raises an error of this name on a GPU.
    out_of_memory = status == -signal.SIGKILL or any("OutOfMemoryError" in line for line in tail)
    fix = f" {job.less_memory}, and the same lineage continues" if job.less_memory else ""
    hint = f" (out of memory?{fix})" if out_of_memory else ""
    again = " ".join(command(path, job.phase))
    return f"phase {job.phase} {how}{hint}; run it alone with: {again}\n" + "\n".join(tail)
