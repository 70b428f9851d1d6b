"""Make the local server ready for runs: `python -m flows.server.deploy`, which `spin up` starts beside the server.

Waits for the server, has what an earlier `spin up` left as running go on, and installs the work pool and the
deployments of prefect.yaml. What a user has set on a deployment since stays: its schedules, parameters and tags, its
concurrency limit, its job variables.
"""

import contextlib
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.settings import PREFECT_HOME
from prefect.states import AwaitingRetry, Cancelled, Crashed

import flows.spin  # noqa: F401 (so that it is loaded by the time the server answers)
from flows.server import api, local, watch
from spin_core.config.resolve import merge
from spin_core.store import files

LOST = "The server and the worker ended while it ran. Start it again: what is finished is reused."

IN_OUR_POOL = WorkPoolFilter.model_validate({"name": {"any_": [local.POOL]}})

UNDER_WAY = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}

OF_DEPLOYMENTS = {"deployment_id": {"is_null_": False}}

SAID_TO_RUN = FlowRunFilter.model_validate(OF_DEPLOYMENTS | UNDER_WAY)

TASK_SAID_TO_RUN = TaskRunFilter.model_validate(UNDER_WAY)

UNFIT = (404, 409, 422)
"""Answers to settings that fit a deployment no longer. Any other fault may pass."""

Settings = dict[str, dict[str, Any]]
"""What users have set on deployments, by their ids, as JSON."""


def main() -> None:
    """Wait, then make ready."""
    url = os.environ["PREFECT_API_URL"].removesuffix("/api")
    while not api.healthy(url):
        time.sleep(0.2)
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=local.POOL, type="process"))
        if "SPIN_UP" in os.environ:  # on a team's server other workers live
            go_on_with_lost_runs(client)
        deploy_beside(client, Path(PREFECT_HOME.value()) / "deployments.json")


def deploy_beside(client: SyncPrefectClient, kept: Path) -> None:
    """Deploy, and set again what users had set. Meanwhile that is in a file, for the case that this is cut short."""
    before: Settings = user_settings(client) | (json.loads(kept.read_text("utf-8")) if kept.exists() else {})
    files.write_json(kept, before)
    deploy()
    restore(client, before)
    kept.unlink()


def go_on_with_lost_runs(client: SyncPrefectClient) -> None:
    """Schedule the runs that are said to be running here: no worker of this machine lives yet that could run them.

    What has been started again too often has crashed for good, and what was being cancelled is cancelled. Runs of the
    command line are left alone, since they belong to no deployment, and so are those of other machines' workers, which
    may live.
    """
    for run in said_to_run(client):
        if watch.elsewhere(run.labels):
            continue
        of_it = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
        while found := client.read_task_runs(flow_run_filter=of_it, task_run_filter=TASK_SAID_TO_RUN):
            for task in found:
                client.set_task_run_state(task.id, crashed(), force=True)
        client.set_flow_run_state(run.id, next_state(run), force=True)


def said_to_run(client: SyncPrefectClient) -> list[FlowRun]:
    """The runs of our deployments that are under way, as the server has it."""
    found: list[FlowRun] = []
    while page := client.read_flow_runs(
        flow_run_filter=SAID_TO_RUN, work_pool_filter=IN_OUR_POOL, sort=FlowRunSort.ID_DESC, offset=len(found)
    ):
        found += page
    return found


def next_state(run: FlowRun) -> State[Any]:
    """What becomes of a run that was lost."""
    if run.state and run.state.is_cancelling():
        return Cancelled(message="It was being cancelled as the server ended.")
    if run.run_count > int(os.environ.get(local.OF_RERUNS, local.RERUNS)):
        return crashed()
    return AwaitingRetry(message="The server ended while it ran. It goes on, and what is finished is reused.")


def crashed() -> State[Any]:
    """The state of a lost task, or of a run that is not started again by itself. Each is an object of its own."""
    return Crashed(message=LOST)


def user_settings(client: SyncPrefectClient) -> Settings:
    """What `prefect deploy` would set back."""
    return {
        str(deployment.id): DeploymentUpdate(
            parameters=deployment.parameters,
            paused=deployment.paused,
            tags=deployment.tags,
            job_variables=deployment.job_variables,
            concurrency_limit=limit.limit if (limit := deployment.global_concurrency_limit) else None,
            concurrency_options=deployment.concurrency_options,
            schedules=[
                DeploymentScheduleUpdate(
                    schedule=one.schedule,
                    active=one.active,
                    max_scheduled_runs=one.max_scheduled_runs,
                    parameters=one.parameters,
                    slug=one.slug,
                )
                for one in deployment.schedules
            ],
        ).model_dump(mode="json", exclude_unset=True)
        for deployment in client.read_deployments(work_pool_filter=IN_OUR_POOL)
    }


def restore(client: SyncPrefectClient, before: Settings) -> None:
    """Set on deployments what users had set. Tags and job variables that are new in prefect.yaml come beside theirs."""
    now = user_settings(client)
    for deployment, settings in before.items():
        new = now.get(deployment, {"tags": [], "job_variables": {}})
        both = {
            "tags": list(dict.fromkeys([*new["tags"], *settings["tags"]])),
            "job_variables": merge(new["job_variables"], settings["job_variables"]),
        }
        try:
            client.update_deployment(UUID(deployment), DeploymentUpdate.model_validate(settings | both))
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in UNFIT:
                raise
            print(f"deployment {deployment} has its settings from prefect.yaml again: {error}")


def deploy() -> None:
    """`prefect --no-prompt deploy --all`, in this process, which has loaded all that already."""
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
    try:
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    main()
