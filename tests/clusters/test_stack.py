"""The team's server as it runs: the services of infra/compose.yaml, with Debian's PostgreSQL and Redis beneath them."""

import json
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import Stack, documented, postgres, postgres_programs, redis, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        postgres_programs() is None or shutil.which("redis-server") is None,
        reason="no PostgreSQL or no Redis here: apt-get install postgresql redis-server",
    ),
]

AUTH = ("team", "planted-pass:word")
PASSWORD = "planted-database-password"
LINEAGE = "team"
OVERRIDES = {
    "sft": {"hidden_size": 8, "intermediate_size": 16, "layers": 1, "train": {"epochs": 1}},
    "prompts": {"sample": 48, "held_out": 16},
    "generate": {"shard_size": 24},
    "train": {"epochs": 1, "batch_size": 16},
    "gate": {"rule": "always"},
    "controls": {"sft_continued": False, "temperatures": []},
}


@dataclass
class Team:
    """The stack, and what is asked of its server."""

    stack: Stack
    runs: Path
    url: str
    redis: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return httpx.request(method, f"{self.url}{path}", json=body, headers=headers, auth=AUTH, timeout=60)

    def get(self, path: str) -> Any:
        return self.ask("GET", path).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        """Ask with the token that CSRF protection wants."""
        token = self.get("/csrf-token?client=test")["token"]
        headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        return self.ask("POST", path, body, **headers).raise_for_status().json()

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    def wait(self, what: Any) -> Any:
        return wait_for(what, self.stack.alive)


@dataclass
class Played:
    """A run in whose midst the server was killed and started again."""

    run: Any
    leases: int


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
    places = {
        "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
        "PREFECT_SERVER_DATABASE_PORT": str(database),
        "PREFECT_REDIS_MESSAGING_URL": f"redis://127.0.0.1:{cache}/0",
        "PREFECT_SERVER_DOCKET_URL": f"redis://127.0.0.1:{cache}/1",
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": f"redis://127.0.0.1:{cache}/2",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(api),
        "PREFECT_API_URL": f"http://127.0.0.1:{api}/api",
        "PREFECT_WORKER_WEBSERVER_PORT": str(health),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    variables = documented() | {"SPIN_AUTH": ":".join(AUTH), "SPIN_DATABASE_PASSWORD": PASSWORD}
    stack = Stack(folder, variables, places)
    one = Team(stack, folder / "runs", places["PREFECT_API_URL"], cache)
    ours = {"SPIN_RUNS": str(one.runs), "SPIN_HOME": str(Path(__file__).resolve().parents[2])}
    with postgres(database, PASSWORD), redis(folder, cache, stack.services["redis"]["command"]):
        try:
            stack.finish("migrate")
            stack.start("server")
            stack.start("services")
            one.wait(one.ready)
            stack.start("worker-cpu", **ours)
            stack.finish("deploy", **ours)
            yield one
        finally:
            for name in reversed(list(stack.running)):
                stack.end(name, signal.SIGKILL)


@pytest.fixture(scope="module")
def played(team: Team) -> Played:
    import redis as client

    body = {
        "parameters": {"recipe": "demo", "lineage": LINEAGE, "iterations": 1, "overrides": OVERRIDES},
        "state": {"type": "SCHEDULED"},
    }
    deployment = team.get("/deployments/name/spin/spin")["id"]
    run = team.post(f"/deployments/{deployment}/create_flow_run", body)
    team.wait((team.runs / LINEAGE / "iter_00" / "jobs").exists)
    with client.Redis(port=team.redis, db=0) as store:
        leases = len(store.keys("prefect:concurrency:lease:*"))
    team.stack.end("server", signal.SIGKILL)
    assert not team.ready()
    team.stack.start("server")
    team.wait(team.ready)

    def final() -> Any:
        now = team.get(f"/flow_runs/{run['id']}")
        return now if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    return Played(team.wait(final), leases)


def test_a_run_goes_on_while_the_server_is_killed_and_started_again_and_ends_with_the_leaderboard(team, played):
    assert played.run["state_name"] == "Completed", played.run["state"]["message"]
    assert played.leases == 1, "the deployment's limit is held in Redis, so that it outlives the server"
    rows = json.loads((team.runs / LINEAGE / "leaderboard.json").read_text())["rows"]
    assert [row["t"] for row in rows] == [0, 1]
    found = team.post("/artifacts/filter", {"artifacts": {"key": {"any_": [f"leaderboard-{LINEAGE}"]}}})
    assert [one["flow_run_id"] for one in found] == [played.run["id"]]


def test_nobody_is_served_without_the_password_or_from_another_page(team):
    path, body = "/deployments/filter", {}
    assert httpx.get(f"{team.url}/health", timeout=60).status_code == 200, "health is for everyone to ask"
    for auth in (None, ("team", "guessed")):
        assert httpx.get(f"{team.url}/admin/settings", auth=auth, timeout=60).status_code == 401
    assert team.ask("POST", path, body).status_code == 403
    assert {one["name"] for one in team.post(path, body)} >= {"spin", "nightly"}


def test_the_worker_answers_its_health_check(team):
    port = team.stack.places["PREFECT_WORKER_WEBSERVER_PORT"]
    assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code == 200


def test_all_state_is_in_postgresql_and_no_secret_in_a_log(team, played):
    assert played.run["state_name"] == "Completed"
    assert list(team.stack.folder.glob("home-*/**/*.db")) == []
    logs = {path.name: path.read_text(errors="replace") for path in team.stack.folder.glob("*.log")}
    assert {"migrate.log", "server.log", "services.log", "deploy.log", "worker-cpu.log"} <= set(logs)
    for name, text in logs.items():
        assert "planted" not in text, name
