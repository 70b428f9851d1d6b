"""What happens to lost runs, and to settings of users, when `spin up` starts again, with a real server."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry, Cancelling, Running

from flows import compare, evaluate
from flows.server import deploy, local, watch
from flows.server.api import Server
from tests.support.helpers import HOLDS
from tests.support.lineages.small_lineage import build_lineage

pytestmark = pytest.mark.slow

THERE = "ProcessWorker 6b2d5f4e"


def start(client: SyncPrefectClient, deployment: Any, worker: str, state: Any, starts: int = 1) -> Any:
    """A run with a worker's label and a running task, in a state, that was started this many times."""
    run = client.create_flow_run_from_deployment(deployment)
    client.update_flow_run_labels(run.id, {watch.WORKER_LABEL: worker})
    task = client.request(
        "POST",
        "/task_runs/",
        json={"flow_run_id": str(run.id), "task_key": "train", "dynamic_key": "0", "name": "train"},
    ).json()
    client.set_task_run_state(UUID(task["id"]), Running(), force=True)
    for _ in range(starts):
        client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, state, force=True)
    return run.id


@pytest.fixture(scope="module")
def client(shared_server: str) -> Iterator[SyncPrefectClient]:  # noqa: ARG001 (the client takes it from the settings)
    """A client of a server with Spin's work pool."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=local.POOL, type="process"))
        yield client


@pytest.fixture(scope="module")
def became(client: SyncPrefectClient) -> dict[str, tuple[str, str]]:
    """The states of each run and of its task, after `spin up` has rescheduled lost runs."""
    deployment = client.create_deployment(client.create_flow_from_name("spin"), "spin", work_pool_name=local.POOL)
    runs = {
        "here": start(client, deployment, local.WORKER, Running()),
        "there": start(client, deployment, THERE, Running()),
        "cancelling here": start(client, deployment, local.WORKER, Cancelling()),
        "cancelling there": start(client, deployment, THERE, Cancelling()),
        "too often": start(client, deployment, local.WORKER, Running(), starts=local.RERUNS + 1),
    }
    deploy.reschedule_lost_runs(client)
    return {name: (client.read_flow_run(id_).state.name, task_state(client, id_)) for name, id_ in runs.items()}


def task_state(client: SyncPrefectClient, run: Any) -> str:
    (task,) = client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run]}}))
    return task.state.name


def test_local_runs_continue_unless_they_were_cancelled_or_restarted_too_often(became):
    assert became["here"] == ("AwaitingRetry", "Crashed")
    assert became["cancelling here"] == ("Cancelled", "Crashed")
    assert became["too often"] == ("Crashed", "Crashed")


def test_runs_on_another_machine_are_left_to_its_worker(became):
    assert became["there"] == ("Running", "Running")
    assert became["cancelling there"] == ("Cancelling", "Running")


def test_a_run_of_the_command_line_has_crashed_once_the_process_that_signed_it_is_gone(client):
    @flow
    def play() -> None:
        watch.label_with_process()

    labels = client.read_flow_run(play(return_state=True).state_details.flow_run_id).labels
    assert labels.items() >= watch.process_labels(os.getpid()).items()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = watch.process_labels(process.pid)
        process.kill()
    runs = {}
    for name, signed in (("gone", gone), ("mine", watch.process_labels(os.getpid()))):
        runs[name] = client.create_flow_run(play, state=Running()).id
        client.update_flow_run_labels(runs[name], signed)
    watch.check_runs(Server(PREFECT_API_URL.value().removesuffix("/api")))
    assert {name: client.read_flow_run(id_).state.name for name, id_ in runs.items()} == {
        "gone": "Crashed",
        "mine": "Running",
    }


@pytest.mark.parametrize("play", [evaluate.evaluate, compare.compare], ids=lambda play: play.name)
def test_a_run_that_is_started_again_waits_for_its_own_end(client, tmp_path, monkeypatch, play):
    """Its first process was taken for dead, and still has the lock. Nothing is computed here."""
    build_lineage(tmp_path)
    monkeypatch.setattr(evaluate, "_start", lambda lineage: (lineage.records()[0].opponent, None))
    monkeypatch.setattr(evaluate, "score", lambda *_, **__: None)
    monkeypatch.setattr(compare, "_run_seed", lambda _game: None)
    monkeypatch.setattr(compare.comparisons, "table", lambda *_: None)
    monkeypatch.setattr(compare, "publish_comparison", lambda *_: None)
    name = {"evaluate": {"target": "tale"}, "compare": {"name": "tales"}}[play.name]
    parameters = {**name, "runs": str(tmp_path)}
    run = client.create_flow_run(play, parameters=parameters)
    for state in (Running(), AwaitingRetry()):
        client.set_flow_run_state(run.id, state, force=True)
    (root,) = (tmp_path / folder for folder in name.values())
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as twin:
        assert twin.stdout is not None
        assert twin.stdout.readline() == "held\n"
        threading.Timer(2, twin.stdin.close).start()
        state = run_flow(play, flow_run=client.read_flow_run(run.id), parameters=parameters, return_type="state")
        assert (state.name, twin.wait()) == ("Completed", 0), state.message


THEIRS = {
    "parameters": {"lineage": "mine"},
    "tags": ["theirs"],
    "concurrency_limit": 3,
    "concurrency_options": {"collision_strategy": "CANCEL_NEW"},
    "schedules": [{"schedule": {"cron": "30 3 * * *", "timezone": "Europe/Berlin"}, "active": True}],
}
"""What a user has set on a deployment."""


def as_in_file(client: SyncPrefectClient, name: str, parameter: str = "lineage") -> UUID:
    """Do what `prefect deploy` does: replace a deployment by that of the file."""
    return client.create_deployment(
        client.create_flow_from_name("spin"),
        name,
        work_pool_name=local.POOL,
        parameters={parameter: "nightly"},
        parameter_openapi_schema={
            "type": "object",
            "properties": {parameter: {"type": "string"}},
            "additionalProperties": False,
        },
        enforce_parameter_schema=True,
        tags=["spin"],
        concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy="ENQUEUE"),
        schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *"), active=False)],
    )


def settings(client: SyncPrefectClient, deployment: UUID) -> dict[str, Any]:
    """What is set on a deployment now, in the form of `THEIRS`."""
    current = deploy.user_settings(client)[str(deployment)]
    (schedule,) = current["schedules"]
    when = {name: schedule["schedule"][name] for name in ("cron", "timezone")}
    options = {"collision_strategy": current["concurrency_options"]["collision_strategy"]}
    schedules = [{"schedule": when, "active": schedule["active"]}]
    return {name: current[name] for name in THEIRS} | {"schedules": schedules, "concurrency_options": options}


@pytest.fixture
def theirs(client: SyncPrefectClient, request: pytest.FixtureRequest) -> UUID:
    """A deployment on which a user has set everything."""
    deployment = as_in_file(client, request.node.name)
    client.request("PATCH", "/deployments/{id}", path_params={"id": deployment}, json=THEIRS)
    assert settings(client, deployment) == THEIRS
    return deployment


def test_a_users_settings_are_kept_and_new_ones_are_added(client, theirs, tmp_path, monkeypatch, request):
    monkeypatch.setattr(deploy, "deploy", lambda: as_in_file(client, request.node.name))
    deploy.deploy_keeping_settings(client, tmp_path / "kept.json")
    assert settings(client, theirs) == THEIRS | {"tags": ["spin", "theirs"]}
    assert list(tmp_path.iterdir()) == []


def test_a_deploy_that_is_cut_short_loses_nothing(client, theirs, tmp_path, monkeypatch, request):
    def cut_short() -> None:
        as_in_file(client, request.node.name)
        raise KeyboardInterrupt

    def busy(*_: Any) -> None:
        answer = httpx.Response(503, request=httpx.Request("PATCH", "http://server"))
        raise PrefectHTTPStatusError("busy", request=answer.request, response=answer)

    kept = tmp_path / "kept.json"
    with monkeypatch.context() as first:
        first.setattr(deploy, "deploy", cut_short)
        with pytest.raises(KeyboardInterrupt):
            deploy.deploy_keeping_settings(client, kept)
    monkeypatch.setattr(deploy, "deploy", lambda: as_in_file(client, request.node.name))
    with monkeypatch.context() as second:
        second.setattr(client, "update_deployment", busy)
        with pytest.raises(PrefectHTTPStatusError):
            deploy.deploy_keeping_settings(client, kept)
    assert settings(client, theirs)["concurrency_limit"] == 1
    deploy.deploy_keeping_settings(client, kept)
    assert settings(client, theirs) | {"tags": []} == THEIRS | {"tags": []}
    assert not kept.exists()


def test_settings_that_fit_a_deployment_no_longer_are_dropped(client, theirs, tmp_path, monkeypatch, request, capsys):
    monkeypatch.setattr(deploy, "deploy", lambda: as_in_file(client, request.node.name, "chain"))
    deploy.deploy_keeping_settings(client, tmp_path / "kept.json")
    assert settings(client, theirs)["parameters"] == {"chain": "nightly"}
    assert f"deployment {theirs} has its settings from prefect.yaml again" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
