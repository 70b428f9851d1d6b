"""Make the local server ready for runs: `python -m flows.deploy`, which `spin up` starts beside the server.

Waits for the server, ends what a killed `spin up` left as running, and installs the work pool and the deployments of
prefect.yaml. What a user has set on a deployment since (its schedules, its parameters) stays.
"""

import contextlib
import os
import runpy
import sys
import time
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.states import Crashed

import flows.spin  # noqa: F401 (so that it is loaded by the time the server answers)
from flows import local

LOST = "The server and the worker ended while it ran. Start it again: what is finished is reused."
IN_OUR_POOL = WorkPoolFilter.model_validate({"name": {"any_": [local.POOL]}})
OF_DEPLOYMENTS = FlowRunFilter.model_validate({"deployment_id": {"is_null_": False}})
UNDER_WAY = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
SAID_TO_RUN = FlowRunFilter.model_validate(UNDER_WAY)
TASK_SAID_TO_RUN = TaskRunFilter.model_validate(UNDER_WAY)


def main() -> None:
    """Wait, then make ready."""
    url = os.environ["PREFECT_API_URL"].removesuffix("/api")
    while not local.healthy(url):
        time.sleep(0.2)
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=local.POOL, type="process"))
        end_lost_runs(client)
        before = user_settings(client)
        deploy()
        for deployment, settings in before.items():
            try:
                client.update_deployment(deployment, settings)
            except PrefectHTTPStatusError as error:  # they fit the flow's parameters no longer
                print(f"deployment {deployment} has its settings from prefect.yaml again: {error}")


def end_lost_runs(client: SyncPrefectClient) -> None:
    """Say of all that is said to be running that it crashed: no worker lives yet that could run it.

    Runs of the command line are left alone: they belong to no deployment.
    """
    lost: State[None] = Crashed(message=LOST)
    for run in client.read_flow_runs(flow_run_filter=SAID_TO_RUN, work_pool_filter=IN_OUR_POOL):
        client.set_flow_run_state(run.id, lost, force=True)
    for task in client.read_task_runs(flow_run_filter=OF_DEPLOYMENTS, task_run_filter=TASK_SAID_TO_RUN):
        client.set_task_run_state(task.id, lost, force=True)


def user_settings(client: SyncPrefectClient) -> dict[UUID, DeploymentUpdate]:
    """What `prefect deploy` would set back."""
    return {
        deployment.id: DeploymentUpdate(
            parameters=deployment.parameters,
            paused=deployment.paused,
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
        )
        for deployment in client.read_deployments(work_pool_filter=IN_OUR_POOL)
    }


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
