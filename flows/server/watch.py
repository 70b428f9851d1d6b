"""What `spin up` does about runs that died: it says so of those whose process is gone, and starts crashed ones again.

A team's server does this by automations (`infra/automations.py`). On SQLite their bookkeeping, a write for every event,
can lock the whole database for a minute at a time; on one machine, the processes themselves tell more, and sooner. Runs
of workers on other machines are left to those: their processes cannot be seen from here. Runs of the command line say
which process plays them (`sign`); once that is gone they have crashed, and are started again by hand.
"""

import contextlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.server import local
from flows.server.api import Server
from spin_core.errors import TryAgain
from spin_core.runtime import process

EVERY_SECONDS = 3.0

WITHOUT_PROCESS = {"RUNNING": 10.0, "CANCELLING": 10.0, "PENDING": 120.0}
"""For how many seconds a run may be in such a state without a process, which takes its time to start."""

BEFORE_AGAIN_SECONDS = 15.0
"""A worker says some seconds later again that a run has crashed, and would mean the one that was started since."""

RECENT = timedelta(days=2)
"""A run that crashed before that is not started again by itself."""

POOL = {"name": {"any_": [local.POOL]}}

WORKER_LABEL = "prefect.worker.name"

HOST_LABEL, PID_LABEL, BORN_LABEL = "spin.host", "spin.pid", "spin.born"
"""Which process plays a run of the command line."""

GONE = "Its process is gone."

AGAIN = "It crashed, and goes on by itself. What is finished is reused."


def look(server: Server, reruns: int = local.RERUNS) -> None:
    """Look once. A server that is away or busy is asked the next time."""
    with contextlib.suppress(TryAgain):
        alive, now = living(), datetime.now(UTC)
        lost = [
            run
            for run in runs(server, list(WITHOUT_PROCESS))
            if not elsewhere(run["labels"])
            and run["id"] not in alive
            and age(run, now) > WITHOUT_PROCESS[run["state_type"]]
        ]
        lost += [run for run in runs(server, list(WITHOUT_PROCESS), deployed=False) if left_alone(run["labels"])]
        for run in lost:
            cancelling = run["state_type"] == "CANCELLING"
            set_state(server, run, {"type": "CANCELLED" if cancelling else "CRASHED", "message": GONE})
        for run in runs(server, ["CRASHED"], since=now - RECENT):
            # What never began has counted no start: what keeps it from beginning would do so again.
            if run["id"] not in alive and 0 < run["run_count"] <= reruns and age(run, now) > BEFORE_AGAIN_SECONDS:
                set_state(server, run, {"type": "SCHEDULED", "name": "AwaitingRetry", "message": AGAIN})


def elsewhere(labels: Mapping[str, Any] | None) -> bool:
    """Whether a worker of another machine has the run of these labels. Workers label runs before they start them.

    (Prefect's `infrastructure_pid` is the bare number of a process, by which no machine can be told.)
    """
    return bool((labels or {}).get(WORKER_LABEL, local.WORKER) != local.WORKER)


def sign() -> None:
    """In a run that no worker has started: label it with our process. No run ends for the sake of its labels."""
    from uuid import UUID

    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.runtime import flow_run

    with (
        contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError),
        get_client(sync_client=True) as client,
    ):
        client.update_flow_run_labels(UUID(flow_run.id), signature(os.getpid()))


def signature(pid: int) -> dict[str, Any]:
    """The labels of a run that a process of this machine plays."""
    return {HOST_LABEL: os.uname().nodename, PID_LABEL: pid, BORN_LABEL: process.birth(pid)}


def left_alone(labels: Mapping[str, Any] | None) -> bool:
    """Whether a process of this machine has signed the run of these labels, and is gone."""
    have = labels or {}
    return have.get(HOST_LABEL) == os.uname().nodename and process.birth(have[PID_LABEL]) != have[BORN_LABEL]


def living() -> set[str]:
    """The runs that have a process on this machine: their own, or one that they have started."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            for word in path.read_bytes().split(b"\0"):
                if word.startswith(b"PREFECT__FLOW_RUN_ID="):
                    found.add(word.split(b"=", 1)[1].decode())
    return found


def runs(server: Server, states: list[str], since: datetime | None = None, *, deployed: bool = True) -> list[Any]:
    """The runs of our deployments in such states, or of none; those that ended before `since` left out."""
    wanted: dict[str, Any] = {"state": {"type": {"any_": states}}, "deployment_id": {"is_null_": not deployed}}
    if since:
        wanted["end_time"] = {"after_": since.isoformat()}
    query = {"flow_runs": wanted, **({"work_pools": POOL} if deployed else {})}
    found: list[Any] = server.ask("/flow_runs/filter", query)
    return found


def age(run: Any, now: datetime) -> float:
    """For how many seconds a run has been in its state."""
    return (now - datetime.fromisoformat(run["state"]["timestamp"])).total_seconds()


def set_state(server: Server, run: Any, state: Any) -> None:
    """Ask the server to set a run's state."""
    server.ask(f"/flow_runs/{run['id']}/set_state", {"state": state})
