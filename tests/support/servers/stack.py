"""infra/compose.yaml, read as Docker reads it, with its services as processes of this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.support.helpers import ROOT

T = TypeVar("T")

FILE = ROOT / "infra" / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")
TIMEOUT_SECONDS = 400.0
"""How long anything here may take on a busy machine."""
PAUSE_SECONDS = 0.25
"""The time between two checks."""


def wait_for(condition: Callable[[], T], alive: Callable[[], None] = lambda: None) -> T:
    """The first true value that `condition` returns. `alive` is called in between, and may fail."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (value := condition()):
        alive()
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(PAUSE_SECONDS)
    return value


def compose(variables: Mapping[str, str]) -> Any:
    """The file with its variables filled in; `KeyError` with the name of a required variable that has no value."""

    def value(match: re.Match[str]) -> str:
        name, sign, rest = match.groups()
        if given := variables.get(name, ""):
            return given
        if sign == ":?" or sign is None:
            raise KeyError(name)
        return str(rest)

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(below) for key, below in node.items()}
        if isinstance(node, list):
            return [filled(below) for below in node]
        return VARIABLE.sub(value, node).replace("$$", "$") if isinstance(node, str) else node

    return filled(yaml.safe_load(FILE.read_text("utf-8")))


def documented() -> dict[str, str]:
    """The variables in the example of an env file, with their values there."""
    lines = (FILE.parent / "example.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def loopback_addresses(database: int, cache: int, api: int, cache_password: str) -> dict[str, str]:
    """The variables with the ports of database, Redis and API on this machine."""
    return {
        "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
        "PREFECT_SERVER_DATABASE_PORT": str(database),
        "PREFECT_REDIS_MESSAGING_URL": f"redis://:{cache_password}@127.0.0.1:{cache}/0",
        "PREFECT_SERVER_DOCKET_URL": f"redis://:{cache_password}@127.0.0.1:{cache}/1",
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": f"redis://:{cache_password}@127.0.0.1:{cache}/2",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(api),
        "PREFECT_API_URL": f"http://127.0.0.1:{api}/api",
    }


class Stack:
    """The services as processes, on free ports of loopback. `places` has the addresses and paths that differ."""

    def __init__(self, folder: Path, variables: Mapping[str, str], places: Mapping[str, str]) -> None:
        self.folder, self.places = folder, places
        self.services = compose(variables)["services"]
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a service in the file, with the addresses and paths of this test."""
        given = {key: str(value) for key, value in self.services[name]["environment"].items()}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        home = str(self.folder / f"home-{name}")
        given = {key: re.sub("^/(state|cache)", home, value) for key, value in given.items()}
        places = {key: value for key, value in self.places.items() if key in given}
        return {**kept, "OMP_NUM_THREADS": "1", **given, **places}

    def command(self, name: str) -> list[str]:
        """The service's command line, with this interpreter."""
        program, *arguments = self.services[name]["command"]
        return [sys.executable, *(["-m", program] if program != "python" else []), *arguments]

    def start(self, name: str, **more: str) -> None:
        """Start a service in its own process group."""
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.command(name),
                cwd=ROOT,
                env={**self.environment(name), **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def finish(self, name: str, **more: str) -> None:
        """Run a service that ends by itself; or wait for it, if it was started."""
        if name not in self.running:
            self.start(name, **more)
        status = self.running.pop(name).wait(TIMEOUT_SECONDS)
        assert status == 0, self.log(name).read_text()[-3000:]

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a service and all that it has started."""
        process = self.running.pop(name)
        for signal_number in (number, signal.SIGKILL):
            try:
                os.killpg(process.pid, signal_number)
                process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        process.wait(20)

    def alive(self) -> None:
        """Fail with the end of the log of a service that has ended by itself."""
        for name, process in self.running.items():
            assert not process.poll(), f"{name}: {self.log(name).read_text()[-3000:]}"

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@contextmanager
def postgres(port: int, password: str) -> Iterator[None]:
    """Debian's PostgreSQL with its own folder, user and database. It does not run as root."""
    programs = postgres_programs()
    assert programs is not None
    home = Path(tempfile.mkdtemp(prefix="spin-postgres-"))  # pytest's own folders are closed to other users
    secret = home / "password"
    secret.write_text(password)
    as_user = []
    if os.getuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        for path in (home, secret):
            shutil.chown(path, "postgres")

    def run(program: str, *arguments: str) -> None:
        line = [*as_user, str(programs / program), *arguments]
        done = subprocess.run(line, cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    data = f"--pgdata={home}/data"
    try:
        initial = ["--no-sync", "--username=spin", "--auth=scram-sha-256", f"--pwfile={secret}", "--locale=C.UTF-8"]
        run("initdb", data, *initial)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        run("pg_ctl", data, "--wait", f"--log={home}/log", f"--options={options}", "start")
        try:
            address = f"postgresql://spin:{password}@127.0.0.1:{port}/postgres"
            run("psql", "--quiet", "--command=CREATE DATABASE spin", address)
            yield
        finally:
            run("pg_ctl", data, "--mode=immediate", "stop")
    finally:
        shutil.rmtree(home)


def postgres_programs() -> Path | None:
    """The folder of initdb and pg_ctl; None without PostgreSQL."""
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


@contextmanager
def redis(folder: Path, port: int, service: Mapping[str, Any]) -> Iterator[None]:
    """Debian's Redis, started as in the file, with its own folder."""
    place = ["--dir", str(folder), "--port", str(port), "--bind", "127.0.0.1"]
    environment = {**os.environ, **service["environment"]}
    process = subprocess.Popen([*service["command"], *place], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)
