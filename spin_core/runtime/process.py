"""Processes: start them in groups, end whole groups, end them with their parent, and read their state from the kernel.

The state is read from /proc; on systems without it, no process appears to run.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from spin_core.runtime.grace import GRACE_SECONDS
from spin_core.store.files import remove

DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow down everyone on a shared machine
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_MININTERVAL": "10",
}
"""Environment variables of a phase, unless they are set already."""


def spawn(arguments: list[str], *, stdin: int, stderr: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a process that leads its own group, with its output in a pipe.

    It ends with this process if it calls `die_with_parent`.
    """
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


@contextlib.contextmanager
def guarded(arguments: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads its own group, which ends when this process ends, even by kill -9 at any moment.

    Args:
        arguments: A command that does not call `die_with_parent`, and does not read stdin.
        options: Options of `subprocess.Popen`.
    """
    # The command starts when its guard runs: a process that was killed between the two would leave an orphan.
    wait = ["sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh"]
    with (
        subprocess.Popen([*wait, *arguments], stdin=subprocess.PIPE, process_group=0, **options) as process,
        guard(process.pid),
    ):
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was ended meanwhile
            process.stdin.write(b"\n")
            process.stdin.close()
        yield process


def guard(group: int) -> subprocess.Popen[bytes]:
    """Start a process in the group that ends the whole group when this process ends.

    It reads from a pipe that the kernel closes when this process ends, even by kill -9. The leader of the group asks
    the kernel to end it too (`die_with_parent`), but its children do not. Signals to the whole group, which ask the
    others to end, do not end the guard.
    """
    command = 'trap "" TERM INT HUP; read -r _; kill -9 0'
    process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, process_group=group)
    _guards.add(process.pid)
    return process


_guards: set[int] = set()
"""The guards that this process has started."""


def others_in_group(group: int) -> set[int]:
    """The ids of the running processes of a group, without its leader and the guards that this process has started."""
    return members_of_group(group) - {group} - _guards


def end_group(process: subprocess.Popen[Any], grace: float | None = None) -> None:
    """Ask the process to save and end, and kill what is left of its group after `grace` seconds (30 by default)."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS if grace is None else grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_leftover(job_file: Path) -> None:
    """End the process group that an earlier, killed run of the same job left behind.

    The file that names it may be a copy, or the kernel may have given the number to another program. So only a process
    that started at that time and works on this very file is ended.
    """
    pid_file = job_file.with_suffix(".pid")
    with contextlib.suppress(FileNotFoundError, IsADirectoryError, ValueError, ProcessLookupError):
        number, started = pid_file.read_text("utf-8").split()
        pid = int(number)
        if start_time(pid) == started and _works_on(pid, job_file):
            os.killpg(pid, signal.SIGKILL)
            while start_time(pid) == started:
                time.sleep(0.05)
    remove(pid_file)


def _works_on(pid: int, job_file: Path) -> bool:
    """Whether a process has this job file as an argument, or as its input (`spin_core.phases.warm`)."""
    if os.fsencode(job_file) in command_line(pid).split(b"\0"):
        return True
    try:
        # The file may have been written again, by a rename, since it was opened.
        return str(Path(f"/proc/{pid}/fd/0").readlink()).removesuffix(" (deleted)") == str(job_file)
    except OSError:
        return False


def start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if it has ended.

    A process id alone does not name a process for long, since the kernel gives it to another one after the end.
    """
    fields = _stat(pid)
    return fields[_START_TIME] if fields else ""


def is_running(pid: int) -> bool:
    """Whether a process with this id exists and has not ended."""
    return bool(_stat(pid))


def children_of(pid: int) -> set[int]:
    """The ids of the running processes that a process has started."""
    return _pids_with(_PARENT, pid)


def members_of_group(group: int) -> set[int]:
    """The ids of the running processes of a process group."""
    return _pids_with(_GROUP, group)


def command_line(pid: int) -> bytes:
    """The command line of a process, its arguments separated by zero bytes; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def environment_value(pid: int, name: str) -> str:
    """The value of an environment variable of a process; empty if it is not set, or cannot be read."""
    prefix = f"{name}=".encode()
    with contextlib.suppress(OSError):
        values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return next((value.removeprefix(prefix).decode() for value in values if value.startswith(prefix)), "")
    return ""


def environment_values(name: str) -> set[str]:
    """The values of an environment variable in the running processes of this machine that this user may read."""
    values, prefix = set(), f"{name}=".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile, or belongs to another user
            values |= {line for line in path.read_bytes().split(b"\0") if line.startswith(prefix)}
    return {value.removeprefix(prefix).decode() for value in values}


# Positions in /proc/<pid>/stat after the command's name, see proc(5).
_STATE, _PARENT, _GROUP, _START_TIME = 0, 1, 2, 19


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the command's name; empty if the process has ended or is a zombie."""
    try:
        # The name is in parentheses and may contain spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[_STATE] in "ZX" else fields


def _pids_with(field: int, value: int) -> set[int]:
    """The ids of running processes with this value in a field of their /proc/<pid>/stat."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return {pid for pid in pids if (fields := _stat(pid)) and int(fields[field]) == value}


@cache
def pid_scope() -> str:
    """Names the scope in which this process's id is unique: this boot of this machine, and this container.

    Empty if the system does not show it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return boot + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, so that no orphan holds a GPU."""
    if sys.platform != "linux" or "SPIN_PARENT" not in os.environ:
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["SPIN_PARENT"]):
        sys.exit(1)  # the parent ended before the kernel was asked
