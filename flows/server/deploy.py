"""Prepare the local server for runs: `python -m flows.server.deploy`, which `spin up` starts together with the server.

Waits for the server, reschedules runs that an earlier `spin up` left in a running state, and installs the work pool
and the deployments of prefect.yaml. What users have changed on a deployment is kept: its schedules, parameters
and tags, and its concurrency limit. Job variables are not: the pool offers none.
"""

import contextlib
import importlib
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleUpdate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.settings import PREFECT_HOME
from prefect.states import AwaitingRetry, Cancelled, Crashed

from flows.server import api, local, schedules, watch
from spin_core.reports import links
from spin_core.store import files

_LOST = "The server and the worker ended while it ran. Start it again: what is finished is reused."

_IN_OUR_POOL = WorkPoolFilter.model_validate({"name": {"any_": [local.POOL]}})

_UNFINISHED = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
_OF_DEPLOYMENTS = {"deployment_id": {"is_null_": False}}
_UNFINISHED_RUNS = FlowRunFilter.model_validate(_OF_DEPLOYMENTS | _UNFINISHED)
_UNFINISHED_TASKS = TaskRunFilter.model_validate(_UNFINISHED)

JOB_TEMPLATE: dict[str, Any] = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
"""What a run of the pool is: its deployment's flow, in its worker's environment. Prefect's own template for processes
lets the person who starts a run choose its command, its environment and its folder, and so run other programs."""

DEPLOYMENTS = local.HOME / "flows" / "prefect.yaml"
"""The file of the deployments, in a checkout a link to the one at its root. Entry points are relative to `HOME`."""

_DEPLOYMENTS = ("spin", "nightly", "compare", "evaluate")

_DOES_NOT_FIT = (404, 409, 422)
"""Statuses of the answer to settings that do not fit a deployment any more. Other errors may be temporary."""

Settings = dict[str, dict[str, Any]]
"""What users have set on deployments, by deployment id, as JSON."""


def main() -> None:
    """Wait for the server, then reschedule lost runs and deploy."""
    import_flows()
    url = os.environ["PREFECT_API_URL"].removesuffix("/api")
    while not api.healthy(url):
        time.sleep(0.2)
    with get_client(sync_client=True) as client:
        prepare_pool(client)
        if "SPIN_UP" in os.environ:  # on a team's server, other workers may be running these
            reschedule_lost_runs(client)
        deploy_keeping_settings(client, Path(PREFECT_HOME.value()) / "deployments.json")


def prepare_pool(client: SyncPrefectClient) -> None:
    """Create the work pool of processes. If it exists, set its template again, as earlier versions had another one."""
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=local.POOL, type="process", base_job_template=JOB_TEMPLATE))
    if client.read_work_pool(local.POOL).type == "process":
        client.update_work_pool(local.POOL, WorkPoolUpdate(base_job_template=JOB_TEMPLATE))


def import_flows() -> None:
    """Import the modules of prefect.yaml's entry points.

    Deploying loads each flow's file, which imports these modules and takes seconds. Here that happens while the server
    starts, so that deployments are ready sooner.
    """
    for deployment in yaml.safe_load(DEPLOYMENTS.read_text("utf-8"))["deployments"]:
        file = Path(deployment["entrypoint"].partition(":")[0])
        importlib.import_module(".".join(file.with_suffix("").parts))


def deploy_keeping_settings(client: SyncPrefectClient, backup: Path) -> None:
    """Deploy, and then set again what users had set.

    Until that is done the settings are in the file `backup`, so that a deploy that is interrupted loses none of them.
    """
    before: Settings = user_settings(client) | (json.loads(backup.read_text("utf-8")) if backup.exists() else {})
    backup.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(backup, before)
    deploy()
    if links.OF_PAGES in os.environ:
        add_links(client)
    _restore(client, before)
    backup.unlink()


def reschedule_lost_runs(client: SyncPrefectClient) -> None:
    """Schedule again the runs that the server has as running here: this machine has no worker yet that could run them.

    A run that was started too often stays crashed, and a run that was being cancelled becomes cancelled. Skipped are
    runs of the command line, which belong to no deployment, and runs of other machines' workers, which may be alive.
    """
    for run in _unfinished_runs(client):
        if watch.is_on_other_machine(run.labels):
            continue
        run_filter = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
        # The server answers with a page at a time; what is set to crashed is not in the next one.
        while tasks := client.read_task_runs(flow_run_filter=run_filter, task_run_filter=_UNFINISHED_TASKS):
            for task in tasks:
                client.set_task_run_state(task.id, _crashed(), force=True)
        client.set_flow_run_state(run.id, _next_state(run), force=True)


def _unfinished_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """The unfinished runs of this project's deployments."""
    runs: list[FlowRun] = []
    while page := client.read_flow_runs(
        flow_run_filter=_UNFINISHED_RUNS, work_pool_filter=_IN_OUR_POOL, sort=FlowRunSort.ID_DESC, offset=len(runs)
    ):
        runs += page
    return runs


def _next_state(run: FlowRun) -> State[Any]:
    """The state that a lost run gets."""
    if run.state and run.state.is_cancelling():
        return Cancelled(message="It was being cancelled as the server ended.")
    if watch.starts(run.model_dump()) > int(os.environ.get(local.OF_RERUNS, local.RERUNS)):
        return _crashed()
    return AwaitingRetry(message="The server ended while it ran. It goes on, and what is finished is reused.")


def _crashed() -> State[Any]:
    """The state of a lost task, or of a run that is not started again automatically. A new object each time."""
    return Crashed(message=_LOST)


def user_settings(client: SyncPrefectClient) -> Settings:
    """What users may have set on deployments, and `prefect deploy` would reset."""
    return {
        str(deployment.id): _without_earlier_defaults(
            deployment.name,
            DeploymentUpdate(
                parameters=deployment.parameters,
                paused=deployment.paused,
                tags=deployment.tags,
                concurrency_limit=limit.limit if (limit := deployment.global_concurrency_limit) else None,
                concurrency_options=deployment.concurrency_options,
                schedules=[
                    DeploymentScheduleUpdate(
                        schedule=schedule.schedule,
                        active=schedule.active,
                        max_scheduled_runs=schedule.max_scheduled_runs,
                        parameters=schedule.parameters,
                        slug=schedule.slug,
                    )
                    for schedule in deployment.schedules
                ],
            ).model_dump(mode="json", exclude_unset=True),
        )
        for deployment in client.read_deployments(work_pool_filter=_IN_OUR_POOL)
    }


def _without_earlier_defaults(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what earlier versions of prefect.yaml had set, and users have not changed."""
    if name in _DEPLOYMENTS and settings["concurrency_limit"] == 1:
        settings = {**settings, "concurrency_limit": None, "concurrency_options": None}
    if name == schedules.DEPLOYMENT:
        return schedules.with_own_lineages(settings)
    if (name, settings["parameters"]) == ("spin", {"recipe": "demo"}):
        return {**settings, "parameters": {}}
    return settings


def _restore(client: SyncPrefectClient, before: Settings) -> None:
    """Set on deployments what users had set. Tags that are new in prefect.yaml are added."""
    now = user_settings(client)
    for deployment, settings in before.items():
        settings.pop("job_variables", None)  # in the file that an earlier version left
        tags = list(dict.fromkeys([*now.get(deployment, {"tags": []})["tags"], *settings["tags"]]))
        try:
            client.update_deployment(UUID(deployment), DeploymentUpdate.model_validate(settings | {"tags": tags}))
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in _DOES_NOT_FIT:
                raise
            print(f"deployment {deployment} has its settings from prefect.yaml again: {error}")


def add_links(client: SyncPrefectClient) -> None:
    """Add to the deployments' descriptions where results are, since no menu of the UI leads there."""
    line = f"Results: [all lineages]({links.LINEAGES}), [artifacts](/v2/artifacts)."
    for deployment in client.read_deployments(work_pool_filter=_IN_OUR_POOL):
        described = DeploymentUpdate(description=f"{deployment.description}\n\n{line}")
        client.update_deployment(deployment.id, described)


def deploy() -> None:
    """Run `prefect --no-prompt deploy --all` in this process, which has imported Prefect and the flows already."""
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]
    os.chdir(local.HOME)
    try:
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    main()
