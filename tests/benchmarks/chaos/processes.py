"""The processes of a lineage: found by a mark in their environment, which every process inherits, and killed."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from spin_core.runtime import process

MARK = "SPIN_CHAOS"
"""The environment variable with the folder that processes belong to."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

ORPHAN_SECONDS = 20.0
"""How long processes may take to end after the command that started them."""


def environment(folder: Path) -> dict[str, str]:
    """The variables of processes that belong to a folder: their mark, and a folder of their own for temporary files."""
    return {MARK: f"{folder}/", "TMPDIR": str(folder / "tmp")}


def marked(mark: str) -> set[int]:
    """The ids of the running processes whose mark is this folder or in it."""
    wanted, pids = f"{MARK}={mark}/".encode(), set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if any(line.startswith(wanted) for line in (folder / "environ").read_bytes().split(b"\0")):
                pids.add(int(folder.name))
    return {pid for pid in pids if process.is_running(pid)}


def named(pids: set[int], module: str) -> list[int]:
    """Those of the processes that run a Python module."""
    return [pid for pid in sorted(pids) if module.encode() in process.command_line(pid).split(b"\0")]


def phases(runs: Path) -> set[tuple[int, str]]:
    """The phases that run for lineages of a folder: process id and start time."""
    running = set()
    for file in _pid_files(runs):
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid, started = file.read_text("utf-8").split()
            if process.start_time(int(pid)) == started:
                running.add((int(pid), started))
    return running


def _pid_files(folder: Path) -> Iterator[Path]:
    """The files of phases; folders may vanish meanwhile, when they are published."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False) and entry.name != ".prefect":
                yield from _pid_files(Path(entry.path))
            elif entry.name.endswith(".pid"):
                yield Path(entry.path)


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to processes; some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_orphans(mark: str) -> list[str]:
    """The command lines of the processes that are left some seconds after their command has ended. Ends them."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    lines = [process.command_line(pid).replace(b"\0", b" ").decode("utf-8", "replace") for pid in sorted(left)]
    send(sorted(left), signal.SIGKILL)
    return [line for line in lines if line]
