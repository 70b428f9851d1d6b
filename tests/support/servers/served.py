"""A `spin up` with its own folder, for tests: a real server and a real worker, used through the API."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

T = TypeVar("T")
TIMEOUT_SECONDS = 240.0
"""How long anything here may take on a busy machine."""
PAUSE = 0.25
"""Seconds between two checks: each costs CPU time here and in the server."""


def wait_for(condition: Callable[[], T]) -> T:
    """The first true value that `condition` returns. Calls it again and again."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(PAUSE)
    return value


def new_client() -> httpx.Client:
    """A client for many requests of one server. It drops an idle connection before the server does, after 5 s."""
    return httpx.Client(timeout=60, limits=httpx.Limits(keepalive_expiry=3))


@dataclass
class Up:
    """A `spin up` with its own folder."""

    runs: Path
    port: int
    host: str = "127.0.0.1"
    secrets: dict[str, str] = field(default_factory=dict)
    """Variables that only its environment has."""
    options: tuple[str, ...] = ()
    process: subprocess.Popen[str] = field(init=False)
    client: httpx.Client = field(default_factory=new_client)
    """For all requests. One for each request would read all certificates each time."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of requests: the token that the server requires for changes."""
    output: list[str] = field(default_factory=list)
    """What it has printed."""

    def command(self, *more: str) -> list[str]:
        options = ["--runs", str(self.runs), "--port", str(self.port), "--host", self.host]
        return [sys.executable, "-m", "flows.command_line", "up", *options, *self.options, *more]

    def spin(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command for the same folder."""
        words = [sys.executable, "-m", "flows.command_line", command, *arguments, "--runs", str(self.runs)]
        return subprocess.run(
            words, env=self.all_environment(), capture_output=True, text=True, check=False, timeout=300
        )

    @staticmethod
    def all_environment() -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {**kept, "OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        """Start it, and return when it reports that it is up."""
        environment = self.all_environment() | self.secrets
        self.process = subprocess.Popen(self.command(), env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith("up: "):
                return
        raise AssertionError((self.runs / ".prefect" / "server.log").read_text()[-2000:])

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, unless a test has, and close the connections to it."""
        if self.process.poll() is None:
            self.end()
        self.client.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def auth(self) -> tuple[str, str] | None:
        """A client's name and password, from the file for clients of this machine."""
        file = self.runs / ".prefect" / "password"
        if not file.exists():
            return None
        name, _, password = file.read_text().strip().partition(":")
        return name, password

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait until it has ended; returns the exit status."""
        self.client.close()
        self.client = new_client()
        self.process.send_signal(number)
        self.output.append(self.process.communicate(timeout=60)[0])
        return self.process.returncode

    def alive(self, *words: str) -> list[int]:
        """Processes that it has started, directly or not, whose command lines have all these words."""
        mark, pids = f"SPIN_RUNS={self.runs}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().decode().split("\0")
                if mark in (folder / "environ").read_bytes().split(b"\0") and set(words) <= set(command):
                    pids.append(int(folder.name))
        return pids

    def request(self, method: str, path: str, body: Any = None, status: int | None = None) -> Any:
        """The API's answer to a request.

        Retries at 503, which means that the database is busy, and while a server that was killed is started again. So
        does Prefect's own client.
        """
        base = f"http://127.0.0.1:{self.port}/api"
        url = f"{base}{path}"

        def send() -> httpx.Response | None:
            with contextlib.suppress(httpx.TransportError):
                response = self.client.request(method, url, json=body, headers=self.headers, auth=self.auth)
                if response.status_code == 403:
                    token = self.client.get(f"{base}/csrf-token?client=test", auth=self.auth)
                    self.headers |= {"Prefect-Csrf-Client": "test", "Prefect-Csrf-Token": token.json()["token"]}
                    return None
                return response if response.status_code != 503 else None
            return None

        # In a list, since a response is false if its status is an error.
        (answer,) = wait_for(lambda: [response for response in [send()] if response is not None])
        assert answer.status_code == status or (status is None and answer.is_success), answer.text
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> Any:
        return self.request("GET", f"/deployments/name/{name}/{name}")

    def trigger(self, name: str, parameters: Any, status: int = 201) -> Any:
        """Start a run of a deployment, as the form does."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.request("POST", f"/deployments/{self.deployment(name)['id']}/create_flow_run", body, status)

    def finish(self, run: Any) -> Any:
        """The run, once it is in a final state. A run that crashed is started again by `spin up`."""

        def final() -> Any:
            now = self.request("GET", f"/flow_runs/{run['id']}")
            return now if now["state_type"] in ("COMPLETED", "FAILED", "CANCELLED") else None

        return wait_for(final)

    def history(self, run: Any) -> list[str]:
        """The names of all states that a run has had, in order."""
        return [state["name"] for state in self.request("GET", f"/flow_run_states/?flow_run_id={run['id']}")]

    def messages(self, run: Any) -> list[str]:
        """The messages of all states that a run has had."""
        return [state["message"] for state in self.request("GET", f"/flow_run_states/?flow_run_id={run['id']}")]

    def task_states(self, run: Any) -> list[str]:
        """The state of each task run of all tries of a run."""
        return [task["state_name"] for task in self._task_runs(run)]

    def tasks(self, run: Any) -> dict[str, str]:
        """The state of each task run, by name, as it was last."""
        return {task["name"]: task["state_name"] for task in self._task_runs(run)}

    def _task_runs(self, run: Any) -> list[Any]:
        query = {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return list(self.request("POST", "/task_runs/filter", query))

    def artifacts(self, key: str) -> list[Any]:
        """All versions of an artifact, the newest first."""
        query = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
        return list(self.request("POST", "/artifacts/filter", query))

    def count_runs(self) -> int:
        return int(self.request("POST", "/flow_runs/count", {}))


def install(up: Up, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m infra.install` for the server's folder."""
    return subprocess.run(
        [sys.executable, "-m", "infra.install", "--runs", str(up.runs), *arguments],
        env={**up.all_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_in_form(root: Path) -> Any:
    """The parameters that start a run of a lineage as it was started."""
    config = json.loads((root / "lineage.json").read_text())["config"]
    recipe, iterations = config.pop("recipe"), config.pop("iterations")
    return {"recipe": recipe, "lineage": root.name, "iterations": iterations, "overrides": config}


def holder(root: Path) -> int:
    """The process that has locked the lineage."""
    return int((root / ".lock").read_text().split()[1])


def stamps(root: Path) -> dict[str, int]:
    """When each published folder was published."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("manifest.json")}


def board(root: Path) -> Any:
    """A lineage's leaderboard, without its path and its costs."""
    leaderboard = json.loads((root / "leaderboard.json").read_text().replace(str(root.parent), ""))
    for row in leaderboard["rows"]:
        row["costs"] = None
    return leaderboard
