"""Starting phases: the only place where command lines are built.

A phase runs in a process group of its own that ends with the one that started it, whichever way that ends. A training
or a scoring of several ranks is such a phase, which becomes torchrun and starts a process for each rank.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from spin_core import engines, errors, ranks, store
from spin_core.config import SpeedConfig, VllmConfig
from spin_core.jobs import Job, ScoreJob
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
"""How long a phase may take to save its work after SIGTERM, before it is killed."""


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
    path = write_job(job)
    end_leftover(path)
    tail: deque[str] = deque(maxlen=20)
    last: dict[str, Any] = {}
    with started(job.phase, path) as process:
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
        end_group(process)  # children that it left behind would hold its log open
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


def speed_of(job: Job) -> SpeedConfig | None:
    """How a job's ranks are to be started; None for one process without DeepSpeed.

    Scoring takes this node's ranks, and has no use for DeepSpeed, since nothing is summed but its results.
    """
    if isinstance(job, ScoreJob):
        alone = {"nodes": 1, "rendezvous": "", "deepspeed": ""}
        return job.speed.model_copy(update=alone) if job.speed.ranks > 1 else None
    speed = getattr(getattr(job, "config", None), "speed", None)
    if not isinstance(speed, SpeedConfig) or not (speed.ranks * speed.nodes > 1 or speed.deepspeed):
        return None
    return speed


def start_ranks(job: Job, job_file: Path, speed: SpeedConfig) -> NoReturn:
    """Become torchrun: start this node's ranks, wait for all, and end as the first that failed, or with 0.

    torchrun sets each rank in a session of its own, out of reach for what ends our process group. So each asks the
    kernel to end it with us (`phase.die_with_parent`), and we are ended with our group.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    node = int(os.environ.get(NODE_RANK, "0"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ |= {**DEFAULTS, "OMP_NUM_THREADS": str(max(1, cores // speed.ranks)), **os.environ}
    os.environ["SPIN_PARENT"] = str(os.getpid())
    if network := interface_to(speed.rendezvous.rpartition(":")[0] or "127.0.0.1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", network)
    if speed.nodes > 1 and node == 0:
        line = " ".join(command(job_file, job.phase))
        log.info("this is node 0 of %d: on each other, by its number, run %s=1 %s", speed.nodes, NODE_RANK, line)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what failed is told below
    try:
        run.main(rank_arguments(job, job_file, speed, node))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode == -signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)  # so that it is told as what it was
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException:
        sys.exit(errors.Stopped.exit_code)
    except RuntimeError as error:
        raise errors.TryAgain(
            f"the ranks could not be started ({(str(error).splitlines() or [type(error).__name__])[0]}): see that "
            f"{speed.rendezvous or 'this machine'} can be reached and that its port is free"
        ) from error
    sys.exit(0)


def rank_arguments(job: Job, job_file: Path, speed: SpeedConfig, node: int) -> list[str]:
    """torchrun's arguments for one node. Nodes that were started for different jobs do not meet."""
    name = ranks.RUN_ID + store.digest_of(job.model_dump(mode="json"))[:16]
    host, _, port = speed.rendezvous.rpartition(":")
    module = sys.modules["__main__"].__spec__  # None for a phase that is a script
    meeting = (
        ["--node-rank", str(node), "--master-addr", host, "--master-port", port]
        if speed.nodes > 1
        else ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    )
    return [
        "--nnodes", str(speed.nodes),
        "--nproc-per-node", str(speed.ranks),
        "--rdzv-id", name,
        "--rdzv-conf", f"timeout={int(ranks.PATIENCE.total_seconds())}",
        *(["--shutdown-timeout", str(int(GRACE_SECONDS))] if torchrun_knows("--shutdown-timeout") else []),
        *meeting,
        *(["--module", module.name] if module else [str(Path(sys.argv[0]).resolve())]),
        str(job_file),
    ]  # fmt: skip


def torchrun_knows(option: str) -> bool:
    """Whether this version of torchrun has an option; where it has not, its own default holds."""
    from torch.distributed import run

    return any(option in action.option_strings for action in run.get_args_parser()._actions)


def interface_to(host: str) -> str:
    """The network interface from which a host is reached; empty if that is not to be found out."""
    if sys.platform != "linux":
        return ""
    import fcntl

    SIOCGIFADDR = 0x8915
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        ours = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                if fcntl.ioctl(probe, SIOCGIFADDR, name.encode().ljust(256, b"\0"))[20:24] == ours:
                    return name
    return ""


@contextlib.contextmanager
def started(phase: str, job_file: Path) -> Iterator[subprocess.Popen[str]]:
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
            end_group(process)
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


def end_group(process: subprocess.Popen[str]) -> None:
    """Ask the process to save and end, and kill what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
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
