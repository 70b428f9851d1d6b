"""Whose turn it is: how many runs of a user compute at once on this machine.

Each run has a file in a folder of this machine, whatever server it reports to, and locks it as long as it exists. The
kernel unlocks it when the run's process ends, for whatever reason. A run computes when fewer than `at_once` others do
and none waits longer. In a job of Slurm, which has devices of its own, only runs of the same job count.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

AT_ONCE = "SPIN_AT_ONCE"
"""The environment variable with how many runs compute at once; 0 for any number."""

FOLDER = "SPIN_TURNS"
"""The environment variable with the folder. Runs with different folders do not wait for each other."""

POLL_SECONDS = 1.0

_MUTEX = "mutex"

Report = Callable[[Sequence[str]], None]
"""Is called with the descriptions of the runs ahead, at the first wait and whenever they have changed."""


class _Entry(NamedTuple):
    """A run's file."""

    file: TextIO
    path: Path


def at_once() -> int:
    """How many runs compute at once, by the environment; 0 for any number."""
    value = os.environ.get(AT_ONCE, "")
    return int(value) if value.isdigit() else 1


@contextlib.contextmanager
def turn(description: str, limit: int, report: Report) -> Iterator[None]:
    """Wait for a turn, and hold it.

    Args:
        description: What runs, as `run mine`.
        limit: How many runs may compute at once; 0 does not wait. Such a run counts for others all the same.
        report: Called with the runs that this one waits for.
    """
    folder = _folder()
    if folder is None:
        yield
        return
    with _entered(folder, f"{description} (process {os.getpid()})") as entry:
        waits_for: list[str] = []
        while ahead := _begin(folder, entry, limit):
            if ahead != waits_for:
                report(ahead)
                waits_for = ahead
            time.sleep(POLL_SECONDS)
        yield


def running() -> list[str]:
    """Descriptions of the runs that compute on this machine now."""
    folder = _folder()
    if folder is None:
        return []
    with _locked(folder):
        return [text for text, computes in _others(folder, None).values() if computes]


def _folder() -> Path | None:
    """The folder, which only this user can use; None if it cannot be made, or is another user's."""
    job = os.environ.get("SLURM_JOB_ID", "")
    folder = Path(os.environ.get(FOLDER, "") or f"/tmp/spin-{os.getuid()}{job and f'-{job}'}")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if folder.is_dir() and not folder.is_symlink() and status.st_uid == os.getuid():
            return folder
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's own lock, for an instant."""
    with (folder / _MUTEX).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _entered(folder: Path, description: str) -> Iterator[_Entry]:
    """This run's file, which says that it waits. Names of files sort by the time at which runs came."""
    with contextlib.ExitStack() as stack:
        with _locked(folder):
            path = folder / f"{time.time_ns():020d}-{os.getpid()}"
            file = stack.enter_context(path.open("x+", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX)
            entry = _Entry(file, path)
            _write(entry, description, computes=False)
        try:
            yield entry
        finally:
            path.unlink(missing_ok=True)


def _write(entry: _Entry, description: str, *, computes: bool) -> None:
    entry.file.seek(0)
    entry.file.truncate()
    json.dump([description, computes], entry.file)
    entry.file.flush()


def _begin(folder: Path, entry: _Entry, limit: int) -> list[str]:
    """Begin to compute, if it is this run's turn. Otherwise returns descriptions of the runs for which it waits."""
    with _locked(folder):
        others = _others(folder, entry)
        computing = [text for text, computes in others.values() if computes]
        waiting = [text for path, (text, computes) in others.items() if not computes and path.name < entry.path.name]
        if limit and (len(computing) >= limit or waiting):
            return computing + waiting
        entry.file.seek(0)
        description, _ = json.load(entry.file)
        _write(entry, description, computes=True)
        return []


def _others(folder: Path, own: _Entry | None) -> dict[Path, tuple[str, bool]]:
    """The other runs, by their files: what they are, and whether they compute. Removes files of dead runs.

    The caller holds the folder's lock: a run that has just made its file has not locked it yet.
    """
    others: dict[Path, tuple[str, bool]] = {}
    for path in sorted(folder.glob("[0-9]*-[0-9]*")):
        if own and path == own.path:
            continue
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                description, computes = json.load(file)
                others[path] = (description, computes)
            else:
                path.unlink(missing_ok=True)
    return others
