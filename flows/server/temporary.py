"""The temporary server of a run when none is up: run and server end together.

Prefect would start one by itself. But it waits two minutes for a server that has failed, ends in a traceback then, and
leaves the server running for ever if the run is killed. So it is started here, while Prefect is imported, and what
prevents it is reported at once: a full disk, or a damaged database. That is moved aside, since lineages do not need it.

A run without its server could begin no further phase, and would take minutes to end, even at SIGTERM: at the end of
each task and flow, Prefect retries its requests, since a server may come back. A temporary server does not.
"""

import atexit
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from flows.server import api
from flows.server.state import DATABASE, open_private
from spin_core.errors import SpinError, TryAgain, first_line
from spin_core.runtime import grace, process
from spin_core.store.files import storage_errors
from tasks import display

START_SECONDS = 120.0
"""How long the server may take to start."""

STOP_SECONDS = 5.0
"""How long it may take to end."""

SPACE_BYTES = 2**22
"""What the server needs on its disk, at least."""

_LOG = "temporary.log"

_APPLICATION = "prefect.server.api.server:create_app"

_watchers: list[subprocess.Popen[bytes]] = []
"""Kept, because the pipe of a process object without references is closed."""

_interrupted = threading.Event()
"""Set at Ctrl-C, which a terminal sends to the server, too."""


class Server:
    """Prefect's server for this process alone, which ends at the latest when this process does."""

    def __init__(self, state: Path) -> None:
        """Start it. It is ready some seconds later; see `wait`.

        Args:
            state: The folder of its database, which is Prefect's home.

        Raises:
            StorageError: The disk is full, or the folder cannot be written.
        """
        with storage_errors(state, _chosen_by(state)):
            state.mkdir(parents=True, exist_ok=True)
        check_space(state)
        set_aside_damaged_database(state)
        self.log = state / _LOG
        self.log.unlink(missing_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        variables = {
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            "SPIN_PARENT": str(os.getpid()),
        }
        with open_private(self.log) as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.server.child", "--factory", _APPLICATION,
                 "--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"],
                env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                process_group=0,  # a terminal's Ctrl-C is for the run, which needs the server until its own end
            )  # fmt: skip
        # Exit handlers run in reverse order: Prefect, imported later, first sends what it still has to send.
        atexit.register(self.stop)

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Return when it is ready.

        Raises:
            StorageError: The disk has become full.
            TryAgain: It has ended, or is not ready in time.
        """
        deadline = time.monotonic() + seconds
        while not api.healthy(self.url):
            status = self.process.poll()
            if status is not None or time.monotonic() > deadline:
                check_space(self.log.parent)
                how = f"was not ready within {seconds:.0f} s" if status is None else f"ended with status {status}"
                raise TryAgain(
                    f"Prefect's temporary server {how} ({self.last_line()}): run the same command again; its log is "
                    f"{self.log}"
                )
            time.sleep(0.05)

    def hand_over(self) -> None:
        """Give it to Prefect, as the one that it would start by itself, and end at its exit."""
        from prefect.server.api.server import SubprocessASGIServer

        own = SubprocessASGIServer()
        own.port, own.server_process, own.running = self.port, self.process, True

    def last_line(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text("utf-8", "replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _chosen_by(state: Path) -> str:
    """How a user chooses the folder of Prefect's state: with the folder of lineages, or by itself."""
    return "PREFECT_HOME" if str(state) == os.environ.get("PREFECT_HOME") and state.name != ".prefect" else "--runs"


def check_space(folder: Path) -> None:
    """Raise `StorageError` if the folder's disk has no space for a database, by writing some megabytes."""
    probe = folder / f".probe-{os.getpid()}"
    with storage_errors(folder, _chosen_by(folder)):
        try:
            probe.write_bytes(bytes(SPACE_BYTES))
        finally:
            probe.unlink(missing_ok=True)


def set_aside_damaged_database(state: Path) -> None:
    """Rename a database that SQLite finds damaged, and say so. Lineages do not need it, only the history in the UI."""
    database = state / DATABASE
    problem = database_problem(database)
    if not problem:
        return
    aside = database.with_name(f"{database.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for ending in ("", "-wal", "-shm"):
        part = database.with_name(database.name + ending)
        if part.exists():
            part.replace(aside.with_name(aside.name + ending))
    click.echo(
        f"{click.style('warning', fg='yellow')}  Prefect's database {database} is damaged ({problem}): it is moved to "
        f"{aside}, and a new one made; lineages do not need it, the UI loses its history",
        err=True,
    )


def database_problem(database: Path) -> str:
    """Why SQLite cannot use a database; empty if it can, or if there is none."""
    if not database.exists() or not database.stat().st_size:
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # locked, or not readable: its server reports that
        return ""
    except sqlite3.DatabaseError as error:
        return first_line(error)
    return "" if result == "ok" else " ".join(str(result).split())


@contextlib.contextmanager
def server_errors(state: Path) -> Iterator[None]:
    """Turn a failure of the server during a run into one line.

    Raises:
        SpinError: What the run failed for, if the server's failure only followed from it.
        StorageError: The disk of the server's database is full, or cannot be written.
        TryAgain: The server has failed in another way.
    """
    try:
        yield
    except SpinError:
        raise
    except Exception as error:
        import httpx
        from prefect.exceptions import PrefectHTTPStatusError

        causes = list(_causes(error))
        if not any(isinstance(cause, (PrefectHTTPStatusError, httpx.TransportError)) for cause in causes):
            raise
        for cause in causes:
            if isinstance(cause, SpinError):
                raise cause from error
        check_space(state)
        raise TryAgain(
            f"Prefect's server failed ({first_line(error)}); what is finished is kept: run the same command again"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that came before it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def end_with_temporary_server() -> None:
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
