"""`spin up`: a server, the deployments and a worker in one process group, until Ctrl-C."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from flows import local
from spin_core.errors import ConfigError, TryAgain

HOST = "127.0.0.1"
POOL = "spin"
HOME = Path(__file__).resolve().parent.parent
START_SECONDS = 180.0


def serve(runs: Path, port: int) -> None:
    """Serve until interrupted, or until a part ends by itself. Everything ends together."""
    url = local.serving(runs)
    if url is not None:
        click.echo(f"already up: {url} (lineages in {runs})")
        return
    refuse_taken_port(port)
    if not (HOME / "prefect.yaml").exists():
        raise ConfigError(f"{HOME} holds no prefect.yaml: install with pip install -e from a checkout")
    url = f"http://{HOST}:{port}"
    state = local.state_folder(runs)
    state.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_API_URL": f"{url}/api",
        "SPIN_RUNS": str(runs),
        "SPIN_HOME": str(HOME),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "spin_core",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    signal.signal(signal.SIGTERM, interrupt)
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        log = stack.enter_context((state / "server.log").open("ab"))
        click.echo("starting the server …")
        server = stack.enter_context(part(["server", "start", "--host", HOST, "--port", str(port)], environment, log))
        wait_until_healthy(url, server, state / "server.log")
        deploy(environment, state / "server.log")
        worker = stack.enter_context(part(["worker", "start", "--pool", POOL, "--type", "process"], environment, log))
        address = state / "server.url"
        address.write_text(url, "utf-8")
        stack.callback(address.unlink, missing_ok=True)
        click.echo(
            f"up: {url}/v2/deployments starts runs; {url}/v2/artifacts shows every iteration and leaderboard\n"
            f"lineages in {runs}; log in {state / 'server.log'}; Ctrl-C ends it"
        )
        while server.poll() is None and worker.poll() is None:
            time.sleep(0.5)
        which = "server" if server.poll() is not None else "worker"
        raise TryAgain(f"the {which} ended by itself: see {state / 'server.log'}, and run spin up again")
    click.echo("down")


def interrupt(*_: object) -> None:
    """SIGTERM ends `spin up` as Ctrl-C does."""
    raise KeyboardInterrupt


def refuse_taken_port(port: int) -> None:
    """`ConfigError` if something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is taken by another program: end it, or choose another with spin up --port {port + 1}"
            ) from error


@contextlib.contextmanager
def part(arguments: list[str], environment: dict[str, str], log: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """One of Prefect's programs in a group of its own, ended with all its children on the way out."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", *arguments],
        env=environment,
        cwd=HOME,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for number, patience in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers; `TryAgain` if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TryAgain(f"the server did not start (status {server.returncode}): its last words are in {log}")
        if local.healthy(url):
            return
        time.sleep(0.5)
    raise TryAgain(f"the server did not answer within {START_SECONDS:.0f} s: its last words are in {log}")


def deploy(environment: dict[str, str], log: Path) -> None:
    """Create the work pool and install the deployments of prefect.yaml; done again, it changes nothing."""
    for arguments in (
        ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
        ["--no-prompt", "deploy", "--all"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            env=environment,
            cwd=HOME,
            capture_output=True,
            text=True,
            check=False,
        )
        with log.open("a", encoding="utf-8") as file:
            file.write(done.stdout + done.stderr)
        if done.returncode:
            raise TryAgain(f"prefect {' '.join(arguments)} failed: {(done.stderr or done.stdout).strip()[-300:]}")
