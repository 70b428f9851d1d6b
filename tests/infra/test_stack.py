"""The team's server as it runs: the services of infra/compose.yaml, with Debian's PostgreSQL and Redis beneath them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.server.local import RERUNS
from tests.support.servers.served import board, holder, new_client
from tests.support.servers.stack import (
    ROOT,
    Stack,
    documented,
    loopback_addresses,
    postgres,
    postgres_programs,
    redis,
    wait_for,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        postgres_programs() is None or shutil.which("redis-server") is None,
        reason="no PostgreSQL or no Redis here: apt-get install postgresql redis-server",
    ),
]

AUTH = ("team", "planted-pass:word")
PASSWORD = "planted-database-password"
CACHE_PASSWORD = "plantedcachepassword"
LINEAGE = "team"
ONE_PROCESS = str(ROOT / "tests" / "support" / "processes" / "one_process.py")
OVERRIDES = {
    "sft": {"hidden_size": 8, "intermediate_size": 16, "layers": 1, "train": {"epochs": 1}},
    "prompts": {"sample": 48, "held_out": 16},
    "generate": {"shard_size": 24},
    "train": {"epochs": 1, "batch_size": 16},
    "gate": {"rule": "always"},
    "evaluate": {"frontier": []},
    "controls": {"sft_continued": False, "temperatures": []},
}


@dataclass
class Team:
    """The stack, and requests to its server."""

    stack: Stack
    runs: Path
    url: str
    redis: int
    client: httpx.Client

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.client.request(method, f"{self.url}{path}", json=body, headers=headers, auth=AUTH)

    def get(self, path: str) -> Any:
        return self.request("GET", path).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        """Ask with the token that CSRF protection wants."""
        token = self.get("/csrf-token?client=test")["token"]
        headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        return self.request("POST", path, body, **headers).raise_for_status().json()

    def ready(self) -> bool:
        try:
            return self.client.get(f"{self.url}/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    def wait(self, what: Any) -> Any:
        return wait_for(what, self.stack.alive)


@dataclass
class InterruptedRun:
    """A run in whose midst the server was killed and started again, and later its worker and its own process."""

    run: Any
    states: list[Any]
    undisturbed: Path


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    database, cache, api, health = free_ports(4)
    places = loopback_addresses(database, cache, api, CACHE_PASSWORD) | {
        "PREFECT_WORKER_WEBSERVER_PORT": str(health),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    passwords = {"SPIN_DATABASE_PASSWORD": PASSWORD, "SPIN_REDIS_PASSWORD": CACHE_PASSWORD}
    variables = documented() | {"SPIN_AUTH": ":".join(AUTH), "SPIN_DEADLINE": "40"} | passwords
    stack = Stack(folder, variables, places)
    with (
        postgres(database, PASSWORD),
        redis(folder, cache, stack.services["redis"]),
        new_client() as client,
    ):
        team = Team(stack, folder / "runs", places["PREFECT_API_URL"], cache, client)
        settings = {"SPIN_RUNS": str(team.runs), "SPIN_HOME": str(ROOT)}
        try:
            stack.finish("migrate")
            stack.start("server")
            stack.start("services")
            stack.start("deploy", **settings)  # it waits for the server
            team.wait(team.ready)
            stack.start("worker-cpu", **settings)
            stack.start("automations", **settings)
            stack.finish("deploy")
            yield team
        finally:
            for name in reversed(list(stack.running)):
                stack.end(name, signal.SIGKILL)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The same run by the command line, without interruption, while the stack starts."""
    runs = tmp_path_factory.mktemp("alone") / "runs"
    sets = [f"--set={name}={json.dumps(value)}" for name, value in OVERRIDES.items()]
    words = [sys.executable, ONE_PROCESS, "run", "demo", "--lineage", LINEAGE, "--iterations", "1", "--runs", str(runs)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with subprocess.Popen([*words, *sets], env={**kept, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL) as process:
        yield runs, process
        process.terminate()


def begin(runs: Path, alone: Path) -> Path:
    """A lineage that has all of the other's but its training and what follows from that."""
    for folder in (LINEAGE, ".sft"):
        shutil.copytree(alone / folder, runs / folder)
    root = runs / LINEAGE
    for made in ("train", "model", "eval", "jobs"):
        shutil.rmtree(root / "iter_00" / made)
    for file in ("leaderboard.json", "iter_00/record.json"):
        (root / file).unlink()
    return root


@pytest.fixture(scope="module")
def interrupted_run(alone: tuple[Path, subprocess.Popen[bytes]], team: Team) -> InterruptedRun:

    body = {
        "parameters": {"recipe": "demo", "lineage": LINEAGE, "iterations": 1, "overrides": OVERRIDES},
        "state": {"type": "SCHEDULED"},
    }
    undisturbed, process = alone
    assert process.wait(400) == 0
    root = begin(team.runs, undisturbed)
    deployment = team.get("/deployments/name/spin/spin")["id"]
    run = team.post(f"/deployments/{deployment}/create_flow_run", body)
    team.wait((root / "iter_00" / "jobs" / "train.json").exists)
    team.stack.end("server", signal.SIGKILL)
    assert not team.ready()
    team.stack.start("server")
    team.wait(team.ready)
    team.stack.finish("automations")
    team.wait((root / "iter_00" / "eval" / "jobs" / "self-play.json").exists)
    os.kill(holder(root), signal.SIGKILL)
    team.stack.end("worker-cpu", signal.SIGKILL)  # before it can say so
    team.stack.start("worker-cpu", SPIN_RUNS=str(team.runs), SPIN_HOME=str(ROOT))

    def final() -> Any:
        now = team.get(f"/flow_runs/{run['id']}")
        return now if now["state_type"] in ("COMPLETED", "FAILED", "CANCELLED") else None

    ended = team.wait(final)
    return InterruptedRun(ended, team.get(f"/flow_run_states/?flow_run_id={run['id']}"), undisturbed / LINEAGE)


def test_pages_of_the_ui_may_connect_to_the_teams_server_alone(team):
    page = team.client.get(f"{team.url.removesuffix('/api')}/v2/dashboard", headers={"Accept": "text/html"})
    policy = page.headers["content-security-policy"]
    assert "connect-src 'self' http://127.0.0.1:4200 ws://127.0.0.1:4200;" in policy, "the address that browsers know"
    assert team.get("/admin/settings")["server"]["analytics_enabled"] is False
    assert team.client.get(f"{team.url}/health", headers={"Host": "spin.example.org"}).status_code == 200


def test_a_run_outlives_its_server_its_worker_and_its_own_process_and_ends_with_the_same_leaderboard(
    team, interrupted_run
):
    assert interrupted_run.run["state_name"] == "Completed", interrupted_run.run["state"]["message"]
    leaderboard = board(team.runs / LINEAGE)
    assert leaderboard == board(interrupted_run.undisturbed)
    assert [row["t"] for row in leaderboard["rows"]] == [0, 1]
    pages = team.post("/artifacts/filter", {"artifacts": {"key": {"any_": [f"leaderboard-{LINEAGE}"]}}})
    assert [page["flow_run_id"] for page in pages] == [interrupted_run.run["id"]]


def test_the_services_see_by_its_missing_heartbeats_that_it_died_and_start_it_again(interrupted_run):
    names = [state["name"] for state in interrupted_run.states]
    places = [names.index(name) for name in ("Running", "Crashed", "AwaitingRetry", "Completed")]
    assert places == sorted(places)
    # The server may have been away for a heartbeat: what lives is started again too, and waits for its own end.
    assert 1 <= names.count("AwaitingRetry") <= RERUNS
    assert 2 <= interrupted_run.run["run_count"] <= 1 + RERUNS
    messages = {state["message"] for state in interrupted_run.states if state["name"] == "Crashed"}
    assert "Silent for 40 s: its process, or its machine, is gone." in messages
    assert interrupted_run.states[names.index("AwaitingRetry")]["message"].startswith(
        "It crashed, and continues by itself."
    )


def test_requests_without_the_password_or_from_another_page_are_rejected(team):
    path, body = "/deployments/filter", {}
    assert httpx.get(f"{team.url}/health", timeout=60).status_code == 200, "health is for everyone to ask"
    for auth in (None, ("team", "guessed")):
        assert httpx.get(f"{team.url}/admin/settings", auth=auth, timeout=60).status_code == 401
    assert team.request("POST", path, body).status_code == 403
    assert {deployment["name"] for deployment in team.post(path, body)} >= {"spin", "nightly"}


def test_redis_asks_for_its_password_which_stands_in_no_command_line(team):
    import redis as client

    for password in (None, "guessed"):
        with client.Redis(port=team.redis, password=password) as store, pytest.raises(client.RedisError):
            store.ping()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.exists()]
    assert [line for line in lines if str(team.redis).encode() in line and b"redis-server" in line]
    assert [line for line in lines if CACHE_PASSWORD.encode() in line] == []


def test_the_worker_answers_its_health_check(team):
    port = team.stack.places["PREFECT_WORKER_WEBSERVER_PORT"]
    assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code == 200


def test_all_state_is_in_postgresql_and_no_secret_in_a_log(team, interrupted_run):
    assert interrupted_run.run["state_name"] == "Completed"
    assert list(team.stack.folder.glob("home-*/**/*.db")) == []
    logs = {path.name: path.read_text(errors="replace") for path in team.stack.folder.glob("*.log")}
    assert {f"{name}.log" for name in ("migrate", "server", "services", "deploy", "automations", "worker-cpu")} <= set(
        logs
    )
    for name, text in logs.items():
        assert "planted" not in text, name
