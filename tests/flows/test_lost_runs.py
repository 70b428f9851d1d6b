"""What becomes of runs that a server has as running when `spin up` starts it again, asked of a real server."""

from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.states import Cancelling, Running
from prefect.testing.utilities import prefect_test_harness

from flows import deploy, local, watch

pytestmark = pytest.mark.slow

THERE = "ProcessWorker 6b2d5f4e"


def start(client: SyncPrefectClient, deployment: Any, worker: str, state: Any, starts: int = 1) -> Any:
    """A run that a worker has put its name to, with a task under way, in a state, started so many times."""
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
def became() -> dict[str, tuple[str, str]]:
    """The states of run and task of each run, once the server's `spin up` has looked after what was lost."""
    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=local.POOL, type="process"))
        flow = client.create_flow_from_name("spin")
        deployment = client.create_deployment(flow, "spin", work_pool_name=local.POOL)
        runs = {
            "here": start(client, deployment, local.WORKER, Running()),
            "there": start(client, deployment, THERE, Running()),
            "cancelling here": start(client, deployment, local.WORKER, Cancelling()),
            "cancelling there": start(client, deployment, THERE, Cancelling()),
            "too often": start(client, deployment, local.WORKER, Running(), starts=local.RERUNS + 1),
        }
        deploy.go_on_with_lost_runs(client)
        return {name: (client.read_flow_run(id_).state.name, task_state(client, id_)) for name, id_ in runs.items()}


def task_state(client: SyncPrefectClient, run: Any) -> str:
    (task,) = client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run]}}))
    return task.state.name


def test_what_ran_here_goes_on_unless_it_was_cancelled_or_has_been_started_too_often(became):
    assert became["here"] == ("AwaitingRetry", "Crashed")
    assert became["cancelling here"] == ("Cancelled", "Crashed")
    assert became["too often"] == ("Crashed", "Crashed")


def test_what_runs_on_another_machine_is_left_to_its_worker(became):
    assert became["there"] == ("Running", "Running")
    assert became["cancelling there"] == ("Cancelling", "Running")
