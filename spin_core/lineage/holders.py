"""The processes that compute lineages on this machine, read from the lineages' locks and from their phases' pid files.

So runs of the command line are known without a server, and those of a temporary server while another one is up.
"""

import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path

from spin_core.config.base import Frozen
from spin_core.lineage.find import lineage_names
from spin_core.lineage.lineage import SHARED
from spin_core.runtime import process
from spin_core.store.jobs import title_of


class Holder(Frozen):
    """A process that computes a lineage."""

    lineage: str
    pid: int
    since: datetime
    phases: tuple[str, ...]
    """The titles of its running phases, as `iter 01 · train`."""


def holders(runs: Path) -> list[Holder]:
    """The processes of this machine that compute lineages of a folder."""
    return [holder for name in lineage_names(runs) if (holder := _holder(runs, name))]


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds a lineage's lock.

    The kernel's list is read: to try the lock could get in the way of a run that starts at this moment.
    """
    try:
        inode = path.lstat().st_ino
        locks = Path("/proc/locks").read_text("ascii")
    except OSError:
        return False
    return bool(re.search(rf"FLOCK.*:{inode} ", locks))


def _holder(runs: Path, name: str) -> Holder | None:
    """The process that holds a lineage's lock; None if the lineage is free, or held on another machine."""
    path = runs / name / ".lock"
    if not is_locked(path):
        return None
    with contextlib.suppress(OSError):
        text, since = path.read_text("utf-8", "replace"), path.stat().st_mtime
        if (named := re.match(r"process (\d+) on ", text)) and process.is_running(pid := int(named[1])):
            phases = _running_phases([runs / name, runs / SHARED], process.children_of(pid))
            return Holder(lineage=name, pid=pid, since=datetime.fromtimestamp(since, UTC), phases=phases)
    return None


def _running_phases(folders: list[Path], pids: set[int]) -> tuple[str, ...]:
    """The titles of the phases in some folders that these processes execute."""
    titles = []
    for file in (file for folder in folders for file in sorted(folder.glob("**/jobs/*.pid"))):
        with contextlib.suppress(OSError, ValueError):
            number, start_time = file.read_text("utf-8").split()
            if int(number) in pids and process.start_time(int(number)) == start_time:
                titles.append(title_of(file.parents[1], file.stem))
    return tuple(titles)
