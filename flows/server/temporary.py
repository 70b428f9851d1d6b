"""The temporary server that Prefect starts for a run when none is up: neither may outlive the other.

Prefect ends it on an ordinary exit. After kill -9 of the run it would go on for ever, holding the database. And a run
without it could begin no further phase, and would take minutes to end, SIGTERM or not: wherever a task or a flow ends,
Prefect asks again and again, since a server may come back. This one does not.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType

import click

from spin_core.errors import TryAgain
from spin_core.runtime import grace, process
from tasks import display

WATCHERS: list[subprocess.Popen[bytes]] = []
"""Kept, because a watcher that is forgotten has its pipe closed."""

INTERRUPTED = threading.Event()
"""Ctrl-C, which a terminal sends to the server, too."""


def end_server_with_us() -> None:
    """Have the temporary server among our children, if there is one, ended as soon as this process is gone.

    And end this process when that server is.
    """
    for pid, command in children().items():
        if b"prefect.server" in command:
            # The kernel closes our side of the pipe when we end, even by kill -9; then the waiting shell goes on.
            watcher = subprocess.Popen(
                ["sh", "-c", f"read -r _; kill -9 {pid}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            WATCHERS.append(watcher)
            signal.signal(signal.SIGINT, interrupt)
            leaving = threading.Event()
            atexit.register(leaving.set)  # called before what Prefect has registered, which ends the server
            threading.Thread(target=end_with_server, args=(pid, leaving), daemon=True).start()


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler of Ctrl-C: it is remembered, and raised as Python does."""
    INTERRUPTED.set()
    signal.default_int_handler(number, frame)


def end_with_server(pid: int, leaving: threading.Event) -> None:
    """Wait for the server's end; then have phases save their work, and end this process, whatever it waits for."""
    born = process.birth(pid)
    while born and process.birth(pid) == born:
        if leaving.wait(0.2):
            return
    if leaving.is_set():
        return
    at_work = [child for child, command in children().items() if b"spin_core." in command]
    for child in at_work:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + grace.longest_grace()
    while any(process.birth(child) for child in at_work) and time.monotonic() < deadline:
        time.sleep(0.1)
    status = 130 if INTERRUPTED.is_set() else TryAgain.exit_code
    try:
        display.current.close()
        if INTERRUPTED.is_set():
            click.echo("stopped; the same command goes on from here", err=True)
        else:
            error = click.style("error", fg="red", bold=True)
            said = "Prefect's temporary server ended in mid-run: the same command goes on from here"
            click.echo(f"{error}  {said}", err=True)
    finally:
        os._exit(status)


def children() -> dict[int, bytes]:
    """The processes that this one has started, and their command lines."""
    found = {}
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # what ends meanwhile is none of them
            for pid in map(int, path.read_text("utf-8").split()):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return found
