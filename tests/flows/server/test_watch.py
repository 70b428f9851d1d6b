"""What `spin up` does about runs that died, with a list of runs as the server and this machine's processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flows.server import local, watch
from flows.server.run_names import lineage_of, shown_name
from spin_core.errors import TryAgain


class Runs:
    """A server's runs, and the states that were set."""

    def __init__(self, *runs: dict[str, Any], tasks: list[dict[str, Any]] | None = None) -> None:
        self.runs, self.tasks, self.set = list(runs), tasks or [], {}

    def post(self, path: str, query: Any) -> Any:
        if path == "/task_runs/filter":
            return self.tasks
        if path == "/flow_runs/filter" and "id" in query["flow_runs"]:
            return [run for run in self.runs if run["id"] in query["flow_runs"]["id"]["any_"]]
        if path == "/flow_runs/filter":
            wanted = query["flow_runs"]["state"]["type"]["any_"]
            deployed = not query["flow_runs"]["deployment_id"]["is_null_"]
            return [run for run in self.runs if run["state_type"] in wanted and run["deployed"] == deployed]
        _, kind, run, act = path.split("/")
        assert kind in ("flow_runs", "task_runs")
        assert act == "set_state"
        self.set[run] = query["state"].get("name") or query["state"]["type"]
        return {}


def run(name: str, state: str, seconds: float, worker: str = local.WORKER, starts: int = 1) -> dict[str, Any]:
    """A run that has been in its state for this many seconds, with the labels of Prefect's workers."""
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    labels = {"prefect.worker.name": worker, "prefect.worker.type": "process"} if worker else {}
    state_of = {"type": state, "timestamp": since.isoformat()}
    return {
        "id": name,
        "state_type": state,
        "state": state_of,
        "run_count": starts,
        "labels": labels,
        "deployed": True,
    }


def typed(name: str, state: str, labels: dict[str, Any]) -> dict[str, Any]:
    """A run of the command line that has just come to be in its state."""
    return run(name, state, 0) | {"deployed": False, "labels": labels}


def after(*runs: dict[str, Any]) -> dict[str, str]:
    """What is set of these runs when they are looked at once."""
    server = Runs(*runs)
    watch.check_runs(server)
    return server.set


@pytest.fixture
def run_with_process() -> Iterator[str]:
    """A run that has a process on this machine."""
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": "living"}
    command = [sys.executable, "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield "living"
        process.kill()


@pytest.mark.parametrize(
    ("state", "seconds", "set_to"),
    [
        ("RUNNING", 11, "CRASHED"),
        ("RUNNING", 9, None),
        ("CANCELLING", 11, "CANCELLED"),
        ("PENDING", 121, "CRASHED"),
        ("PENDING", 60, None),
    ],
)
def test_a_run_of_this_machine_without_a_process_is_dead_after_a_while(state, seconds, set_to):
    assert after(run("gone", state, seconds)) == ({"gone": set_to} if set_to else {})


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "CANCELLING"])
def test_a_run_of_a_worker_on_another_machine_is_not_touched(state):
    assert after(run("there", state, 3600, "ProcessWorker 6b2d5f4e"), run("here", state, 3600)).keys() == {"here"}


def test_a_run_without_a_workers_label_belongs_to_this_machine():
    """The worker died between taking it and saying so."""
    assert after(run("taken", "PENDING", 121, worker="")) == {"taken": "CRASHED"}


def test_a_run_with_a_process_is_alive(run_with_process):
    assert after(run(run_with_process, "RUNNING", 3600), run(run_with_process, "CRASHED", 3600)) == {}


@pytest.mark.parametrize(
    ("starts", "again"), [(0, False), (1, True), (local.RERUNS, True), (local.RERUNS + 1, False), (10, False)]
)
def test_a_crashed_run_is_started_again_three_times_at_most(starts, again):
    assert after(run("crashed", "CRASHED", 16, starts=starts)) == ({"crashed": "AwaitingRetry"} if again else {})
    assert local.RERUNS == 3


@pytest.mark.parametrize(("reruns", "again"), [(0, False), (1, False), (2, True)])
def test_the_number_of_restarts_of_a_crashed_run_can_be_set(reruns, again):
    server = Runs(run("crashed", "CRASHED", 16, starts=2))
    watch.check_runs(server, reruns)
    assert bool(server.set) == again


@pytest.fixture(scope="module")
def gone() -> dict[str, Any]:
    """The labels of a run whose process was killed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        labels = watch.process_labels(process.pid)
        process.kill()
    return labels


def test_a_run_of_the_command_line_whose_process_ended_is_marked_as_crashed_and_not_started_again(gone):
    assert after(typed("typed", "RUNNING", gone), typed("asked", "CANCELLING", gone)) == {
        "typed": "CRASHED",
        "asked": "CANCELLED",
    }
    assert after(typed("typed", "CRASHED", gone)) == {}


def test_a_run_of_the_command_line_is_alive_as_long_as_its_process_exists_on_its_machine(gone):
    mine = watch.process_labels(os.getpid())
    assert (
        after(
            typed("mine", "RUNNING", mine),
            typed("there", "RUNNING", gone | {watch.HOST_LABEL: "another"}),
            typed("unsigned", "RUNNING", {}),
        )
        == {}
    )
    taken = mine | {watch.START_TIME_LABEL: gone[watch.START_TIME_LABEL]}
    assert after(typed("number taken by another", "RUNNING", taken)) == {"number taken by another": "CRASHED"}


def task(name: str, run: str, starts: int = 1, state: str = "RUNNING") -> dict[str, Any]:
    """A task of one try of a run."""
    return {"id": name, "flow_run_id": run, "flow_run_run_count": starts, "state_type": state}


def test_tasks_of_a_dead_try_are_ended(run_with_process):
    server = Runs(
        run("crashed", "CRASHED", 40, starts=0),
        run(run_with_process, "RUNNING", 40, starts=2),
        run("completed just now", "COMPLETED", 1),
        tasks=[
            *(task("of a dead run", "crashed"), task("of the first try", "living"), task("of this try", "living", 2)),
            *(task("not reported yet", "completed just now"), task("of no run", "")),
            task("begins", "living", 0, "PENDING"),
        ],
    )
    watch.check_runs(server)
    assert server.set == {"of a dead run": "CRASHED", "of the first try": "CRASHED"}


def test_runs_that_an_orderly_end_has_stopped_are_scheduled_and_not_crashed():
    server = Runs(run("stopped", "CRASHED", 1), run("never began", "CRASHED", 1, starts=0))
    server.runs.append(run("there", "CRASHED", 1, "ProcessWorker 6b2d5f4e"))
    watch.continue_later(server, datetime.now(UTC))
    assert server.set == {"stopped": "AwaitingRetry"}


def test_a_crashed_run_is_not_started_again_before_its_worker_has_reported_it():
    assert after(run("crashed", "CRASHED", 14)) == {}


def test_a_run_that_crashed_on_another_machine_is_started_again_too():
    """Its own worker has reported it, and any worker may take it."""
    assert after(run("there", "CRASHED", 16, "ProcessWorker 6b2d5f4e")) == {"there": "AwaitingRetry"}


def test_an_unreachable_server_is_tried_again_later():
    class Away(Runs):
        def post(self, *_: Any) -> Any:
            raise TryAgain("it does not answer")

    server = Away(run("gone", "RUNNING", 60))
    watch.check_runs(server)
    assert server.set == {}


def test_a_run_that_waited_after_its_start_was_not_started_more_often():
    waited = run("waited", "CRASHED", 30, starts=4)
    waited["labels"] |= {watch.WAITS_LABEL: 1}
    assert watch.starts(waited) == 3
    server = Runs(waited)
    watch.check_runs(server, reruns=3)
    assert server.set == {"waited": "AwaitingRetry"}


def described(name: str, tags: str, parameters: dict[str, Any], started: int = 0) -> dict[str, Any]:
    """A run as the server describes it, which Prefect has named."""
    return {"name": name, "tags": tags.split(), "parameters": parameters, "run_count": started, "state_name": "Running"}


MINE = {"lineage": "mine", "recipe": "demo"}
AS_IT_IS = {"lineage": "mine", "recipe": "as the lineage has it"}


@pytest.mark.parametrize(
    ("tags", "parameters", "name", "lineage"),
    [
        ("spin", MINE, "demo-mine", "mine"),
        ("spin", AS_IT_IS, "mine", "mine"),
        ("spin", {"recipe": "demo"}, "demo", "demo"),
        ("spin", {}, "spin", ""),
        ("spin nightly", AS_IT_IS, "nightly-mine", "mine"),
        ("spin nightly", {}, "practical-pika", ""),
        ("spin compare", {"recipe": "demo"}, "compare-demo", "compare-demo"),
        ("spin compare", {"recipe": "demo", "name": "trial"}, "compare-demo", "trial"),
        ("spin evaluate", {"target": "mine"}, "evaluate-mine", "mine"),
        ("spin evaluate", {"target": "/models/small", "lineage": "small"}, "evaluate-/models/small", "small"),
    ],
)
def test_a_run_that_has_not_started_has_the_name_that_its_flow_will_give_it(tags, parameters, name, lineage):
    assert shown_name(described("practical-pika", tags, parameters)) == name
    assert lineage_of(described("practical-pika", tags, parameters)) == lineage
    assert shown_name(described("own", tags, parameters, started=1)) == "own"


def test_a_run_that_waits_names_the_lineages_of_those_before_it_and_what_it_waits_for():
    mine = described("demo-mine", "spin", MINE, started=1)
    other = described("nightly-other", "spin nightly", {"lineage": "other"}, started=1)
    waiting = other | {"state_name": "Waiting"}
    again, new = (described("practical-pika", "spin", {"lineage": name}) for name in ("mine", "new"))
    after_it = "this one continues after it"
    at_once = "spin up --at-once allows more"
    assert watch._reason(again, [other, mine]) == f"another run of lineage mine computes; {after_it}"
    assert watch._reason(new, [mine]) == f"a run of mine computes; {at_once}"
    assert watch._reason(new, [other, mine]) == f"a run of mine, a run of other compute; {at_once}"
    assert watch._reason(new, [waiting]) == f"a run of other waits; {at_once}"
    assert watch._reason(described("x", "spin", {}), [described("y", "spin", {})]).startswith("a run of y computes")
