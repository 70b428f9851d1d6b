"""The temporary server that Prefect starts for a run when none is up: it must not outlive the run, however that ends.

Prefect ends it on an ordinary exit. After kill -9 it would go on for ever, holding the database.
"""

import subprocess
from pathlib import Path

WATCHERS: list[subprocess.Popen[bytes]] = []
"""Kept, because a watcher that is forgotten has its pipe closed."""


def end_server_with_us() -> None:
    """Have the temporary server among our children, if there is one, ended as soon as this process is gone."""
    for pid in children():
        if b"prefect.server" in Path(f"/proc/{pid}/cmdline").read_bytes():
            # The kernel closes our side of the pipe when we end, even by kill -9; then the waiting shell goes on.
            watcher = subprocess.Popen(
                ["sh", "-c", f"read -r _; kill -9 {pid}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            WATCHERS.append(watcher)


def children() -> list[int]:
    """The processes that this one has started."""
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        found += [int(pid) for pid in path.read_text("utf-8").split()]
    return found
