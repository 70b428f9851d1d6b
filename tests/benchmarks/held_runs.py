"""How long runs wait to be picked up, as they come ever faster: one part of `operate.py`, a process of its own.

Asks the server that PREFECT_API_URL names, or else that of the `spin up` for SPIN_RUNS. Runs are made as a trigger
makes them, evenly spread over a window, whether or not the server keeps up; each is scheduled for the moment at which
it should have been made. A run's delay is from then until its state says Pending: a worker has taken it.

    held      this process is the worker: Prefect's own, with its polls and proposals, but a run of it is a coroutine
              that says Running, sends a heartbeat, lives for a while and says Completed. The server is measured.
    process   the worker of `spin up` starts a process for each run, of a flow that does nothing.
"""

import asyncio
import contextlib
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.server import local

if "SPIN_RUNS" in os.environ and "PREFECT_API_URL" not in os.environ:
    local.prepare(Path(os.environ["SPIN_RUNS"]), quiet=True)

from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events import emit_event
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Completed, Running, Scheduled
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

LIFE_SECONDS = 30.0
"""How long a held run lives. Prefect sends heartbeats no more often than that."""
DRAIN_SECONDS = 20.0
"""How long after a window its runs may still be taken; what is not counts as taken then."""
SAMPLE = 60
"""For how many runs of a window the states are requested."""


@flow(name="nothing", persist_result=False)
def nothing() -> None:
    """Do nothing."""


class HeldResult(BaseWorkerResult):
    """How a held run ended."""


class HeldWorker(BaseWorker[BaseJobConfiguration, BaseVariables, HeldResult]):
    """A worker whose runs are coroutines."""

    type = "held"
    job_configuration = BaseJobConfiguration

    async def run(self, flow_run: Any, configuration: Any, task_status: Any = None) -> HeldResult:  # noqa: ARG002
        """Run for a while, as the server sees it."""
        await self.client.set_flow_run_state(flow_run.id, Running())
        if task_status:
            task_status.started(0)
        emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"})
        await asyncio.sleep(LIFE_SECONDS)
        await self.client.set_flow_run_state(flow_run.id, Completed())
        return HeldResult(identifier=str(flow_run.id), status_code=0)


async def deploy(client: PrefectClient, kind: str, pool: str) -> UUID:
    """A deployment in a pool, which is made if it is not there."""
    with contextlib.suppress(ObjectAlreadyExists):
        await client.create_work_pool(WorkPoolCreate(name=pool, type=kind))
    here = Path(__file__).resolve()
    return await client.create_deployment(
        await client.create_flow_from_name("nothing"),
        f"nothing-{kind}",
        work_pool_name=pool,
        entrypoint=f"{here.name}:nothing",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(here.parent)}}],
    )


async def window(client: PrefectClient, deployment: UUID, per_minute: int, seconds: float) -> list[float]:
    """Make runs at a rate for so long, and return the delays of a sample of them, in seconds."""
    count = max(1, round(per_minute * seconds / 60))
    began = datetime.now(UTC) + timedelta(seconds=0.5)
    due = [began + timedelta(seconds=seconds * number / count) for number in range(count)]
    made: dict[int, UUID] = {}

    async def make(number: int) -> None:
        await asyncio.sleep(max(0.0, (due[number] - datetime.now(UTC)).total_seconds()))
        state = Scheduled(scheduled_time=due[number])
        made[number] = (await client.create_flow_run_from_deployment(deployment, state=state)).id

    async def taken(number: int) -> datetime:
        while True:
            if number in made:
                for state in await client.read_flow_run_states(made[number]):
                    if state.is_pending():
                        return state.timestamp
            await asyncio.sleep(0.5)

    making = [asyncio.create_task(make(number)) for number in range(count)]
    await asyncio.sleep(seconds + 1)
    sample = range(0, count, -(-count // SAMPLE))
    asking = [asyncio.create_task(taken(number)) for number in sample]
    await asyncio.wait(asking, timeout=DRAIN_SECONDS)
    ended = datetime.now(UTC)
    for task in (*making, *asking):
        task.cancel()
    await asyncio.gather(*making, *asking, return_exceptions=True)
    taken_at = [task.result() if not task.cancelled() and not task.exception() else ended for task in asking]
    return [(when - due[number]).total_seconds() for number, when in zip(sample, taken_at, strict=True)]


async def ladder(kind: str, pool: str, rates: list[int], seconds: float, limit: float) -> None:
    """One window after the other, each faster, until the middle delay passes the limit: one line of JSON for each."""
    async with get_client() as client, contextlib.AsyncExitStack() as stack:
        deployment = await deploy(client, kind, pool)
        if kind == "held":
            worker = asyncio.create_task(HeldWorker(work_pool_name=pool).start(printer=lambda _: None))
            stack.callback(worker.cancel)
        await asyncio.sleep(3)  # the worker reports that it is running
        for rate in rates:
            print(json.dumps({"begins": rate}), flush=True)
            delays = sorted(await window(client, deployment, rate, seconds))
            print(json.dumps({"rate": rate, "delays": delays}), flush=True)
            if delays[len(delays) // 2] > limit:
                return


if __name__ == "__main__":
    _, kind, pool, rates, seconds, limit = sys.argv
    asyncio.run(ladder(kind, pool, json.loads(rates), float(seconds), float(limit)))
