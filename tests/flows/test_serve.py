"""`spin up` as a user has it: a real server and a real worker, runs through its API, kills and signals."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

pytestmark = pytest.mark.slow

T = TypeVar("T")
PATIENCE = 150.0
"""Seconds that anything here may take on a busy machine."""


def wait_for(what: Callable[[], T]) -> T:
    """What `what` gives, as soon as it gives something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


@dataclass
class Up:
    """A `spin up` with a folder of its own."""

    runs: Path
    port: int
    process: subprocess.Popen[str] = field(init=False)

    def command(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", "up", "--runs", str(self.runs), "--port", str(self.port), *more]

    def start(self) -> None:
        """Start it, and return when it says that it is up."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.process = subprocess.Popen(
            self.command(), env={**environment, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("up: "):
                return
        raise AssertionError((self.runs / ".prefect" / "server.log").read_text()[-2000:])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end: the exit status."""
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def alive(self) -> list[str]:
        """The processes that it has started, their children among them."""
        mark, found = f"SPIN_RUNS={self.runs}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()!r}")
        return found

    def ask(self, method: str, path: str, body: Any = None, status: int | None = None) -> Any:
        """An answer of the API. 503 says that the database is busy: Prefect's own client asks again, too."""
        url = f"http://127.0.0.1:{self.port}/api{path}"
        while (answer := httpx.request(method, url, json=body, timeout=60)).status_code == 503:
            time.sleep(0.2)
        assert answer.status_code == status or (status is None and answer.is_success), answer.text
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> Any:
        return self.ask("GET", f"/deployments/name/{name}/{name}")

    def trigger(self, name: str, parameters: Any, status: int = 201) -> Any:
        """Start a run of a deployment, as the form does."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.ask("POST", f"/deployments/{self.deployment(name)['id']}/create_flow_run", body, status)

    def finish(self, run: Any) -> Any:
        """The run, once it is in a final state."""

        def final() -> Any:
            now = self.ask("GET", f"/flow_runs/{run['id']}")
            return now if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return wait_for(final)

    def tasks(self, run: Any) -> dict[str, str]:
        """The state of each task run, by name, as it was last."""
        query = {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return {one["name"]: one["state_name"] for one in self.ask("POST", "/task_runs/filter", query)}

    def artifacts(self, key: str) -> list[Any]:
        """All versions of an artifact, the newest first."""
        query = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
        return list(self.ask("POST", "/artifacts/filter", query))

    def count_runs(self) -> int:
        return int(self.ask("POST", "/flow_runs/count", {}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def up(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Serves a copy of the finished lineage `whole`, which the command line has played."""
    one = Up(tmp_path_factory.mktemp("served") / "runs", free_port())
    for name in ("whole", ".sft", ".prefect"):
        shutil.copytree(finished.runs / name, one.runs / name)
    one.start()
    yield one
    if one.process.poll() is None:
        one.end()


@pytest.fixture(scope="module")
def replayed(up: Up) -> Any:
    """The lineage `whole` once more, with every setting given in the form."""
    return up.finish(up.trigger("spin", as_in_form(up.runs / "whole")))


def as_in_form(root: Path) -> Any:
    """The parameters that start a run of a lineage as it was started."""
    config = json.loads((root / "lineage.json").read_text())["config"]
    recipe, iterations = config.pop("recipe"), config.pop("iterations")
    return {"recipe": recipe, "lineage": root.name, "iterations": iterations, "overrides": config}


@dataclass
class Night:
    """What a night was like whose flow was killed in its second phase, and the next one."""

    meanwhile: Any
    killed: Any
    at_kill: dict[str, int]
    ended: Any
    tasks: dict[str, str]


@pytest.fixture(scope="module")
def night(up: Up, replayed: Any) -> Night:
    assert replayed["state_name"] == "Completed"
    root = up.runs / "whole"
    run = up.trigger("nightly", {"lineage": "whole"})
    wait_for((root / "iter_02" / "jobs" / "generations.json").exists)
    meanwhile = up.finish(up.trigger("spin", as_in_form(root)))
    wait_for((root / "iter_02" / "generations" / "manifest.json").exists)
    os.kill(holder(root), signal.SIGKILL)
    killed = up.finish(run)
    at_kill = stamps(root)
    again = up.trigger("nightly", {"lineage": "whole"})
    return Night(meanwhile, killed, at_kill, up.finish(again), up.tasks(again))


def holder(root: Path) -> int:
    """The process that holds the lineage's lock."""
    return int((root / ".lock").read_text().split()[1])


def stamps(root: Path) -> dict[str, int]:
    """When each published folder was published."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("manifest.json")}


def test_the_user_interface_answers(up):
    page = httpx.get(f"http://127.0.0.1:{up.port}/v2/deployments", headers={"Accept": "text/html"}, timeout=60)
    assert page.status_code == 200
    assert "<html" in page.text


def test_a_second_one_finds_the_first(up):
    done = subprocess.run(up.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith(f"already up: http://127.0.0.1:{up.port} ")


def test_a_taken_port_is_refused_with_the_cure(up, tmp_path):
    other = Up(tmp_path, up.port)
    done = subprocess.run(other.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"port {up.port} is taken" in done.stderr
    assert f"spin up --port {up.port + 1}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("name", "strategy"), [("spin", "ENQUEUE"), ("nightly", "CANCEL_NEW")])
def test_deployments_play_one_game_at_a_time(up, name, strategy):
    found = up.deployment(name)
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == strategy
    assert found["enforce_parameter_schema"]
    assert found["description"]


def test_a_night_is_scheduled_but_not_active(up):
    (schedule,) = up.deployment("nightly")["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "UTC")
    assert not schedule["active"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"recipe": "no-such-recipe"}, "recipe"),
        ({"iterations": 0}, "iterations"),
        ({"lineage": "up/../and/away"}, "lineage"),
        ({"lineage": "Mine"}, "lineage"),
        ({"overrides": {"train": {"beta": -1}}}, "overrides.train.beta"),
        ({"overrides": {"train": {"betta": 1}}}, "overrides.train"),
        ({"overrides": {"trian": {}}}, "overrides"),
    ],
    ids=str,
)
def test_a_bad_parameter_is_refused_before_a_run_exists(up, parameters, named):
    before = up.count_runs()
    answer = up.trigger("spin", {"recipe": "demo", **parameters}, status=409)
    assert f"Validation failed for field '{named}'" in answer["detail"]
    assert up.count_runs() == before


def test_a_run_through_the_worker_is_completed_and_called_by_its_lineage(replayed):
    assert replayed["state_name"] == "Completed"
    assert replayed["name"] == "demo-whole"


def test_what_the_command_line_has_played_is_reused_and_task_runs_are_called_what_they_do(up, replayed):
    states = up.tasks(replayed)
    assert states.pop("publish t=0") == states.pop("publish t=1") == "Completed"
    assert set(states.values()) == {"Reused"}
    assert list(states)[:6] == [
        "base model",
        "prepare prompts",
        "train sft",
        "evaluate θ_0 self-play",
        "generate t=0",
        "build pairs t=0",
    ]
    assert {"score t=1", "train t=1", "evaluate θ_2 self-play", "continue sft lr=0.001"} < set(states)


def test_a_run_of_a_lineage_in_use_fails_naming_the_holder(night):
    assert night.meanwhile["state_name"] == "Failed"
    message = night.meanwhile["state"]["message"]
    assert "LineageBusy: lineage whole is in use by process" in message
    assert "choose another lineage name" in message


def test_a_killed_flow_is_said_to_have_crashed(night):
    assert night.killed["state_name"] == "Crashed"


def test_the_next_run_reuses_what_was_finished_and_repeats_nothing(up, night):
    assert night.ended["state_name"] == "Completed"
    now = stamps(up.runs / "whole")
    assert {name: now[name] for name in night.at_kill} == night.at_kill
    assert "iter_02/generations/manifest.json" in night.at_kill
    assert night.tasks["train t=1"] == night.tasks["generate t=2"] == "Reused"
    assert night.tasks["train t=2"] == night.tasks["evaluate θ_3 self-play"] == "Completed"


def test_a_night_adds_one_iteration_or_ends_one_that_was_begun(up, night):
    assert night.ended["name"] == "nightly-whole"
    root = up.runs / "whole"
    assert sorted(path.name for path in root.glob("iter_*")) == ["iter_00", "iter_01", "iter_02"]
    assert [row["t"] for row in json.loads((root / "leaderboard.json").read_text())["rows"]] == [0, 1, 2, 3]


def test_an_iteration_has_its_page_and_the_leaderboard_a_new_version(up):
    """Of what the command line has played: a night, which is slow to wait for, publishes by the same task."""
    (page,), board = up.artifacts("whole-iteration-01"), up.artifacts("leaderboard-whole")[0]
    assert page["type"] == board["type"] == "markdown"
    assert page["description"].startswith("whole: θ_1 → θ_2; ")
    assert page["data"].startswith("# whole: θ_1 → θ_2\n")
    plots = re.findall(r"!\[([^]]*)\]\(data:image/png;base64,", page["data"])
    assert plots == ["total_variation over the versions", "training curve", "lengths of human and generated responses"]
    assert re.search(r"leads \d versions with total_variation ", board["description"])
    assert "| θ_2 " in board["data"]


def test_a_nights_iteration_is_published_by_its_own_run_and_the_others_are_not_again(up, night):
    assert [len(up.artifacts(f"whole-iteration-{t:02d}")) for t in range(4)] == [1, 1, 1, 0]
    (page,), board = up.artifacts("whole-iteration-02"), up.artifacts("leaderboard-whole")[0]
    assert page["flow_run_id"] == board["flow_run_id"] == night.ended["id"]
    assert " leads 4 versions with total_variation " in board["description"]


def test_a_killed_one_leaves_no_process_and_the_next_one_sets_things_right(tmp_path):
    one = Up(tmp_path / "runs", free_port())
    one.start()
    assert one.alive()
    nightly = one.deployment("nightly")
    schedule = {"schedule": {"cron": "30 3 * * *", "timezone": "Europe/Berlin"}, "active": True}
    one.ask("PATCH", f"/deployments/{nightly['id']}", {"schedules": [schedule], "parameters": {"lineage": "mine"}})
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    lost = one.ask("POST", f"/deployments/{nightly['id']}/create_flow_run", {"state": later})
    task = one.ask("POST", "/task_runs/", {"flow_run_id": lost["id"], "task_key": "train", "dynamic_key": "0"})
    for path in (f"/flow_runs/{lost['id']}", f"/task_runs/{task['id']}"):
        one.ask("POST", f"{path}/set_state", {"state": {"type": "RUNNING"}, "force": True})

    one.end(signal.SIGKILL)
    wait_for(lambda: not one.alive())
    assert (one.runs / ".prefect" / "server.url").read_text()

    one.start()
    after = one.deployment("nightly")
    assert after["id"] == nightly["id"]
    assert after["parameters"] == {"lineage": "mine"}
    (kept,) = after["schedules"]
    assert kept["active"]
    assert (kept["schedule"]["cron"], kept["schedule"]["timezone"]) == ("30 3 * * *", "Europe/Berlin")
    for path in (f"/flow_runs/{lost['id']}", f"/task_runs/{task['id']}"):
        state = one.ask("GET", path)["state"]
        assert state["type"] == "CRASHED"
        assert "Start it again" in state["message"]

    assert one.end(signal.SIGTERM) == 0
    assert not one.alive()
    assert not (one.runs / ".prefect" / "server.url").read_text()
