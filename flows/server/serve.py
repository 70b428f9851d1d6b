"""`spin up`: a server, the deployments and a worker, which end together, at Ctrl-C or `spin down`.

A server or worker that ends by itself is started again, and so are runs that crashed.
"""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self, TextIO

import click

from flows.server import api, local, watch
from spin_core.errors import ConfigError, TryAgain
from spin_core.inference import shards
from spin_core.runtime import grace
from spin_core.runtime import process as runtime_process

HOME = Path(__file__).resolve().parents[2]
"""The checkout, which has `prefect.yaml`."""

START_SECONDS = 180.0

PATIENCE_SECONDS = 45.0
"""How long a part may take to end by itself; the worker so much longer as phases may take to save their work."""

RESTARTS, RESTARTS_WITHIN_SECONDS = 5, 600.0
"""A part that ends by itself more often than that is not started again."""


def serve(runs: Path, host: str, port: int, reruns: int = local.RERUNS) -> None:
    """Serve until interrupted, or until a part ends by itself. Everything ends together."""
    up = local.find_up(runs)
    local.refuse_elsewhere(up, runs)
    if up and local.answers(up):
        click.echo(f"already up: {up.url} (lineages in {runs})")
        return
    refuse_address(host, port)
    if not (HOME / "prefect.yaml").exists():
        raise ConfigError(f"{HOME} holds no prefect.yaml: install with pip install -e from a checkout")
    url = f"http://{reached_at(host)}:{port}"
    state = local.state_folder(runs)
    path = state / "server.log"
    state.mkdir(parents=True, exist_ok=True)
    heed_signals()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(KeyboardInterrupt):
            address = stack.enter_context(claimed(local.address_file(runs)))
            password = api.choose_password(state, host)
            environment = environment_of(runs, url, password) | {local.OF_RERUNS: str(reruns)}
            log = stack.enter_context(path.open("ab"))
            click.echo("starting the server …")
            server = stack.enter_context(
                Part("server", ["prefect", "server", "start", "--host", host, "--port", str(port)], environment, log)
            )
            with part(["flows.server.deploy"], environment, log) as deploying:
                wait_until_ready(server.process, deploying, path)
            worker = stack.enter_context(
                Part(
                    "worker",
                    ["infra.worker", "--pool", local.POOL, "--type", "process", "--name", local.WORKER],
                    environment,
                    log,
                    patience=grace.longest_grace() + 2 * PATIENCE_SECONDS,
                )
            )
            print(url, file=address, flush=True)
            click.echo(
                f"up: {url}/v2/deployments starts runs; {url}/v2/artifacts shows every iteration and leaderboard\n"
                f"lineages in {runs}; log in {path}; Ctrl-C or spin down ends it"
            )
            if password:
                click.echo(
                    f"the UI asks for a password: the line in {api.password_file(state)}, whole; "
                    "between machines, put TLS before it"
                )
            looked, asked = time.monotonic(), api.Server(url, password)
            while True:
                for one in (server, worker):
                    if one.process.poll() is not None:
                        one.start_again(path)
                if time.monotonic() - looked > watch.EVERY_SECONDS:
                    watch.look(asked, reruns)
                    looked = time.monotonic()
                time.sleep(0.5)
        click.echo("ending …")
    click.echo("down")


def environment_of(runs: Path, url: str, password: str) -> dict[str, str]:
    """The environment of server, worker and runs. The password is nowhere else: anyone may read command lines."""
    return {
        # No other page that a browser shows may start runs here, nor read what runs.
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_UI_API_URL": "/api",  # by whichever name a browser knows us
        **os.environ,
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "spin_core",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "SPIN_UP": str(os.getpid()),
        "SPIN_RUNS": str(runs),
        "SPIN_HOME": str(HOME),
        **({api.OF_SERVER: password, api.OF_CLIENTS: password} if password else {}),
    }


def heed_signals() -> None:
    """Have Ctrl-C, `spin down` and the end of the terminal end us in good order."""
    # Also where it was ignored, as in a shell's background jobs: the worker ends at SIGINT, and would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else nohup wants us to outlive the terminal
        signal.signal(signal.SIGHUP, hang_up)


def interrupt(*_: object) -> None:
    """The handler of the signals that end `spin up`."""
    raise KeyboardInterrupt


def hang_up(*_: object) -> None:
    """The handler of the terminal's end, which shell and kernel both tell. Nothing that is said is heard any more."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    raise KeyboardInterrupt


def refuse_address(host: str, port: int) -> None:
    """`ConfigError` if something listens on the port already, or if the host is none of this machine's addresses."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except PermissionError as error:
        raise ConfigError(f"port {port} is for root alone: choose another with spin up --port, from 1024 on") from error
    except (OSError, UnicodeError) as error:
        if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
            raise ConfigError(
                f"--host {host!r} is no address of this machine: 127.0.0.1 serves it alone, 0.0.0.0 serves others too"
            ) from error
        raise ConfigError(
            f"port {port} is taken by another program: end it, or choose another with spin up --port {port + 1}"
        ) from error


def reached_at(host: str) -> str:
    """By which address this machine reaches what listens at `host`, as it stands in a URL."""
    if host == "0.0.0.0":
        return "127.0.0.1"
    return {"::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[TextIO]:
    """The file of the server's address, empty and locked. The kernel frees it when we end, however we end."""
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TryAgain(f"another spin up is starting or ending in {path.parent}: try again in a minute") from error
        file.truncate(0)
        print(os.getpid(), os.uname().nodename, shards.place(), file=file, flush=True)
        try:
            yield file
        finally:
            file.truncate(0)


@contextlib.contextmanager
def part(
    module: list[str], environment: dict[str, str], log: BinaryIO, patience: float = PATIENCE_SECONDS
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module in a process group of its own, which ends with us, in whichever way we end.

    It has `patience` seconds to end by itself when it is asked to.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        env=environment,
        cwd=HOME,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    with process, runtime_process.guard(process.pid):
        try:
            yield process
        finally:
            end(process, patience)


class Part:
    """A part that is started again when it ends by itself."""

    def __init__(
        self,
        name: str,
        module: list[str],
        environment: dict[str, str],
        log: BinaryIO,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.name, self.module, self.environment, self.log, self.patience = name, module, environment, log, patience
        self.ends: deque[float] = deque(maxlen=RESTARTS)
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def start(self) -> None:
        """Start it."""
        self.process = self.stack.enter_context(part(self.module, self.environment, self.log, self.patience))

    def start_again(self, log: Path) -> None:
        """End what it has left behind and start it; `TryAgain` if that happens too often."""
        now = time.monotonic()
        if len(self.ends) == RESTARTS and now - self.ends[0] < RESTARTS_WITHIN_SECONDS:
            raise TryAgain(f"the {self.name} ends by itself again and again: see {log}, and run spin up again")
        self.ends.append(now)
        click.echo(f"the {self.name} ended by itself (status {self.process.returncode}): starting it again …")
        self.stack.close()
        self.start()


def end(process: subprocess.Popen[bytes], patience: float) -> None:
    """End a process group: ask it to, and kill what is left of it after so many seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while (process.poll() is None or others_in(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def others_in(group: int) -> bool:
    """Whether a process of the group is alive that is not its leader: a worker's runs are, where it ended first."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, number = path.read_text("utf-8").rpartition(")")[2].split()[:3]
            if int(number) == group and state not in "ZX" and int(path.parent.name) != group:
                return True
    return False


def wait_until_ready(server: subprocess.Popen[bytes], deploying: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the deployments are installed; `TryAgain` if the server or that ends badly, or it takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while deploying.poll() is None:
        if server.poll() is not None:
            raise TryAgain(f"the server did not start (status {server.returncode}): its last words are in {log}")
        if time.monotonic() > deadline:
            raise TryAgain(f"the server was not ready within {START_SECONDS:.0f} s: its last words are in {log}")
        time.sleep(0.1)
    if deploying.returncode:
        raise TryAgain(f"the deployments could not be installed: why is at the end of {log}; then run spin up again")
