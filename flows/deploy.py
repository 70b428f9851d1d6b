"""Make the local server ready for runs: `python -m flows.deploy`, which `spin up` starts beside the server.

Waits for the server, ends what a killed `spin up` left as running, and installs the work pool and the deployments of
prefect.yaml. Done again, it changes nothing.
"""

import contextlib
import os
import runpy
import sys
import time

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed

import flows.spin  # noqa: F401 (so that it is loaded by the time the server answers)
from flows import local

LOST = "The server and the worker ended while it ran. Start it again: what is finished is reused."


def main() -> None:
    """Wait, then make ready."""
    url = os.environ["PREFECT_API_URL"].removesuffix("/api")
    while not local.healthy(url):
        time.sleep(0.2)
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=local.POOL, type="process"))
        end_lost_runs(client)
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def end_lost_runs(client: SyncPrefectClient) -> None:
    """Say of every run that is said to be running that it crashed: no worker lives yet that could run it."""
    running = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    for run in client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(running),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [local.POOL]}}),
    ):
        client.set_flow_run_state(run.id, Crashed(message=LOST), force=True)


if __name__ == "__main__":
    main()
