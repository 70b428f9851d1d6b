"""The temporary server that Prefect starts for a run when none is up: run and server end together.

Prefect ends it on an ordinary exit. After kill -9 of the run it would go on for ever, and keep the database locked. And
a run without its server could begin no further phase, and would take minutes to end, even at SIGTERM: at the end of
each task and flow, Prefect retries its requests, since a server may come back. A temporary server does not.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import threading
import time
from types import FrameType

import click

from spin_core.errors import TryAgain
from spin_core.runtime import grace, process
from tasks import display

_watchers: list[subprocess.Popen[bytes]] = []
"""Kept, because the pipe of a process object without references is closed."""

_interrupted = threading.Event()
"""Set at Ctrl-C, which a terminal sends to the server, too."""


def end_together() -> None:
    """End the temporary server among this process's children as soon as this process ends, and the other way round.

    Does nothing if there is no such server.
    """
    for pid in process.children_of(os.getpid()):
        if b"prefect.server" in process.command_line(pid):
            # The kernel closes this side of the pipe when this process ends, even by kill -9. Then `read` returns.
            watcher = subprocess.Popen(
                ["sh", "-c", f"read -r _; kill -9 {pid}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            _watchers.append(watcher)
            signal.signal(signal.SIGINT, _interrupt)
            exiting = threading.Event()
            # Exit handlers run in reverse order: this one before Prefect's, which ends the server.
            atexit.register(exiting.set)
            threading.Thread(target=_end_with_server, args=(pid, exiting), daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handler of Ctrl-C: remembers it, and raises `KeyboardInterrupt` as Python does."""
    _interrupted.set()
    signal.default_int_handler(number, frame)


def _end_with_server(pid: int, exiting: threading.Event) -> None:
    """Wait until the server ends; then let phases save their work, and end this process, whatever it waits for."""
    start_time = process.start_time(pid)
    while start_time and process.start_time(pid) == start_time:
        if exiting.wait(0.2):
            return
    if exiting.is_set():
        return
    phases = [child for child in process.children_of(os.getpid()) if b"spin_core." in process.command_line(child)]
    for child in phases:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + grace.longest_grace()
    while any(process.is_running(child) for child in phases) and time.monotonic() < deadline:
        time.sleep(0.1)
    status = 130 if _interrupted.is_set() else TryAgain.exit_code
    try:
        display.current.close()
        if _interrupted.is_set():
            click.echo("stopped; the same command continues from here", err=True)
        else:
            error = click.style("error", fg="red", bold=True)
            message = "Prefect's temporary server ended during the run: the same command continues from here"
            click.echo(f"{error}  {message}", err=True)
    finally:
        os._exit(status)
