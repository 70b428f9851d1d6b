"""`spin up`: a server, the deployments and a worker, which end together, at Ctrl-C or `spin down`.

A server or worker that ends by itself is started again, and crashed runs are rescheduled.
"""

import contextlib
import errno
import fcntl
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NoReturn, Self, TextIO

import click

from flows.server import api, local, schedules, state, watch
from spin_core.config.trust import is_loopback
from spin_core.errors import ConfigError, TryAgain
from spin_core.reports import links
from spin_core.runtime import grace, turns
from spin_core.runtime import process as runtime_process

LOG = "server.log"
"""The file with what server, deployments and worker print, in the state folder."""

START_SECONDS = 180.0
"""How long the server may take to start."""

STOP_SECONDS = 45.0
"""How long a service may take to end after SIGTERM. The worker gets more, for phases to save their work."""

RESTARTS, RESTARTS_WITHIN_SECONDS = 5, 600.0
"""A service that ends by itself more often than this is not started again."""


def serve(runs: Path, host: str, port: int, reruns: int = local.RERUNS, at_once: int = 1) -> None:
    """Serve until Ctrl-C, SIGTERM or the terminal's end. All that was started ends then.

    Args:
        runs: The folder that holds lineages.
        host: The address to listen on.
        port: The port to listen on.
        reruns: How often a crashed run is started again automatically.
        at_once: How many runs compute at once on this machine; 0 for any number.

    Raises:
        ConfigError: The address or the port cannot be used, or another machine serves the folder.
        TryAgain: The server does not start, or a service ends by itself again and again.
    """
    up = local.find_up(runs)
    local.reject_other_machine(up, runs)
    if up and local.answers(up):
        click.echo(f"already up: {up.url} (lineages in {runs})")
        return
    if up:
        raise _starting_or_ending(runs)
    check_address(host, port)
    url = f"http://{_host_in_url(host)}:{port}"
    folder = state.state_folder(runs)
    log_path = folder / LOG
    state.prepare_state(folder)
    handle_signals()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(KeyboardInterrupt):
            address = stack.enter_context(_locked_address_file(local.address_file(runs)))
            password = state.choose_password(folder)
            temporary = stack.enter_context(state.temporary_folder(folder))
            environment = _environment(runs, url, password) | {
                "TMPDIR": str(temporary),
                "TORCHINDUCTOR_CACHE_DIR": _compiler_cache(),
                local.OF_RERUNS: str(reruns),
                turns.AT_ONCE: str(at_once),
            }
            log = stack.enter_context(state.open_private(log_path))
            click.echo("starting the server …")
            server = stack.enter_context(
                _Service("server", ["flows.server.app", host, str(port)], environment, log, umask=0o077)
            )
            with _module_process(["flows.server.deploy"], environment, log, umask=0o077) as deploying:
                _wait_until_ready(server.process, deploying, log_path)
            worker = stack.enter_context(_worker(environment, log, api.Server(url, password), at_once))
            print(url, file=address, flush=True)
            _print_addresses(runs, host, url, password, log_path)
            _watch((server, worker), api.Server(url, password), reruns, at_once, folder)
        click.echo("ending …")
    click.echo("down")


def _print_addresses(runs: Path, host: str, url: str, password: str, log_path: Path) -> None:
    """Print how to open the UI, where lineages and the log are, and how to end `spin up`."""
    signed_in = state.sign_in_url(url, password) if state.is_output_private() else ""
    click.echo(
        f"up: {signed_in} opens the UI, signed in"
        if signed_in
        else f"up: {url} asks for a password: the whole line in {state.password_file(state.state_folder(runs))}"
    )
    click.echo(
        f"{url}/v2/deployments starts runs; {url}{links.LINEAGES} shows every lineage: leaderboards, reports, samples\n"
        f"lineages in {runs}; log in {log_path}; Ctrl-C or spin down ends it"
    )
    if not is_loopback(host):
        click.echo("passwords cross the network in plain text: put a proxy with TLS in front of it")


def handle_signals() -> None:
    """Raise `KeyboardInterrupt` at Ctrl-C, at `spin down`'s SIGTERM, and when the terminal closes."""
    # Also where SIGINT was ignored, as in a shell's background jobs: the worker ends at SIGINT, and would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # Where SIGHUP is ignored, nohup has asked that this process outlives its terminal.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hang_up)


def check_address(host: str, port: int, command: str = "spin up") -> None:
    """Raise `ConfigError` if the port is taken or reserved, or if the host is not an address of this machine.

    Args:
        host: The address to listen on.
        port: The port to listen on.
        command: The command whose option `--port` chooses another port.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except PermissionError as error:
        raise ConfigError(
            f"port {port} is for root alone: choose another with {command} --port, from 1024 on"
        ) from error
    except (OSError, UnicodeError) as error:
        if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
            raise ConfigError(
                f"--host {host!r} is not an address of this machine: use 127.0.0.1 for this machine alone, 0.0.0.0 to "
                "serve others too"
            ) from error
        raise ConfigError(
            f"port {port} is taken by another program: end it, or choose another with {command} --port {port + 1}"
        ) from error


def _environment(runs: Path, url: str, password: str) -> dict[str, str]:
    """The environment of server, worker and runs. The password is only there: anyone may read command lines."""
    return {
        # Pages of other sites, open in the same browser, may neither start runs here nor read what runs.
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_UI_API_URL": "/api",  # relative, so that it works under any name of this machine
        **os.environ,
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "spin_core",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(local.HEARTBEAT_SECONDS),
        "SPIN_UP": str(os.getpid()),
        "SPIN_RUNS": str(runs),
        "SPIN_HOME": str(local.HOME),
        links.OF_PAGES: links.LINEAGES,
        state.OF_SERVER: password,
        state.OF_CLIENTS: password,
    }


def _compiler_cache() -> str:
    """The folder of what torch has compiled. By default it is among the temporary files, but it should outlive them."""
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    return chosen or str(Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}")


class _Service:
    """A module's process that is started again when it ends by itself."""

    def __init__(
        self,
        name: str,
        module: list[str],
        environment: dict[str, str],
        log: BinaryIO,
        stop_seconds: float = STOP_SECONDS,
        umask: int = -1,
    ) -> None:
        self.name, self.module, self.environment, self.log = name, module, environment, log
        self.stop_seconds, self.umask = stop_seconds, umask
        self.ends: deque[float] = deque(maxlen=RESTARTS)
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def start(self) -> None:
        """Start the process."""
        self.process = self.stack.enter_context(
            _module_process(self.module, self.environment, self.log, self.stop_seconds, self.umask)
        )

    def restart(self, log: Path) -> None:
        """End what it has left running and start it again; `TryAgain` if that happens too often."""
        now = time.monotonic()
        if len(self.ends) == RESTARTS and now - self.ends[0] < RESTARTS_WITHIN_SECONDS:
            raise TryAgain(f"the {self.name} ends by itself again and again: see {log}, and run spin up again")
        self.ends.append(now)
        click.echo(f"the {self.name} ended by itself (status {self.process.returncode}): starting it again …")
        self.stack.close()
        self.start()


@contextlib.contextmanager
def _worker(environment: dict[str, str], log: BinaryIO, server: api.Server, at_once: int) -> Iterator[_Service]:
    """The worker. The runs that its end stops are scheduled, so that they continue at the next `spin up`."""
    limit = ["--limit", str(at_once)] if at_once else []
    service = _Service(
        "worker",
        ["infra.worker", "--pool", local.POOL, "--type", "process", "--name", local.WORKER, *limit],
        # A run waits some two minutes for a server that restarts, and then reports what happened meanwhile.
        {"PREFECT_CLIENT_MAX_RETRIES": "7", **environment},
        log,
        stop_seconds=grace.longest_grace() + 2 * STOP_SECONDS,
    )
    ending = datetime.now(UTC)
    try:
        with service:
            try:
                yield service
            finally:
                ending = datetime.now(UTC)
    finally:
        watch.continue_later(server, ending)


def _watch(services: Sequence[_Service], server: api.Server, reruns: int, at_once: int, folder: Path) -> NoReturn:
    """Restart services that have ended, and look after runs and schedules, until a signal's handler raises."""
    log, memory = folder / LOG, folder / "schedules.json"
    problems: set[str] = set()
    checked = time.monotonic()
    while True:
        for service in services:
            if service.process.poll() is not None:
                service.restart(log)
        if time.monotonic() - checked > watch.EVERY_SECONDS:
            watch.check_runs(server, reruns)
            with contextlib.suppress(TryAgain):  # busy: again a few seconds later
                watch.explain_waiting(server, at_once)
                _keep_schedules(server, memory, problems)
            checked = time.monotonic()
        time.sleep(0.5)


def _keep_schedules(server: api.Server, memory: Path, problems: set[str]) -> None:
    """Keep the schedules' lineages. Unexpected data of a schedule is a problem, printed once, and does not end runs."""
    try:
        schedules.keep_lineages(server, memory)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if (problem := repr(error)) not in problems:
            problems.add(problem)
            click.echo(f"the schedules of nightly could not be checked: {problem}", err=True)


def _interrupt(*_: object) -> None:
    """Handler of the signals that end `spin up`."""
    raise KeyboardInterrupt


def _hang_up(*_: object) -> None:
    """Handler of the terminal's end. Shell and kernel may both send the signal, and nothing can be printed any more."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    raise KeyboardInterrupt


def _host_in_url(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`, as written in a URL."""
    if host == "0.0.0.0":
        return "127.0.0.1"
    return {"::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


@contextlib.contextmanager
def _locked_address_file(path: Path) -> Iterator[TextIO]:
    """The file of the server's address, locked, with this process in it. The kernel unlocks it when that ends."""
    with io.TextIOWrapper(state.open_private(path), encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _starting_or_ending(path.parent.parent) from error
        file.truncate(0)
        print(os.getpid(), os.uname().nodename, runtime_process.pid_scope(), file=file, flush=True)
        try:
            yield file
        finally:
            file.truncate(0)


def _starting_or_ending(runs: Path) -> TryAgain:
    """The error of a second `spin up` while the first does not answer."""
    return TryAgain(f"another spin up for {runs} is starting or ending: spin status says when it is ready")


@contextlib.contextmanager
def _module_process(
    module: list[str],
    environment: dict[str, str],
    log: BinaryIO,
    stop_seconds: float = STOP_SECONDS,
    umask: int = -1,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a Python module, in its own process group, which ends when this process ends, even by kill -9.

    Args:
        module: The module's name and its arguments.
        environment: The environment of the process.
        log: Where its output goes.
        stop_seconds: How long it may take to end after SIGTERM.
        umask: The permissions that its new files do not get; -1 is this process's.
    """
    command = [sys.executable, "-m", *module]
    with runtime_process.guarded(
        command, env=environment, cwd=local.HOME, stdout=log, stderr=subprocess.STDOUT, umask=umask
    ) as process:
        try:
            yield process
        finally:
            _end_group(process, stop_seconds)


def _end_group(process: subprocess.Popen[bytes], stop_seconds: float) -> None:
    """Send SIGTERM to a process group, and SIGKILL to what is left of it after `stop_seconds`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + stop_seconds
    # Runs outlive a worker that ends first.
    while (process.poll() is None or runtime_process.others_in_group(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], deploying: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the deployments are installed; `TryAgain` if server or deploying fails, or it takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while deploying.poll() is None:
        if server.poll() is not None:
            raise TryAgain(
                f"the server did not start (status {server.returncode}): see the end of {log}, and run spin up again"
            )
        if time.monotonic() > deadline:
            raise TryAgain(
                f"the server was not ready within {START_SECONDS:.0f} s: see the end of {log}, and run spin up again"
            )
        time.sleep(0.1)
    if deploying.returncode:
        raise TryAgain(f"the deployments could not be installed: why is at the end of {log}; then run spin up again")
