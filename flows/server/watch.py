"""How `spin up` finds runs that have died: it sets them to crashed, and reschedules crashed ones.

A team's server does this by automations (`infra/automations.py`). On SQLite their bookkeeping, a write for every event,
can lock the whole database for a minute at a time; on one machine, the processes themselves are a better and faster
sign. Runs of workers on other machines are left to those workers, since their processes cannot be seen from here. Runs
of the command line have labels that name their process (`label_with_process`); once that process is gone they have
crashed, and a person starts them again.
"""

import contextlib
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.server import local
from flows.server.api import Server
from flows.server.run_names import lineage_of, shown_name
from spin_core.errors import TryAgain
from spin_core.runtime import process

EVERY_SECONDS = 3.0

WITHOUT_PROCESS_SECONDS = {"RUNNING": 10.0, "CANCELLING": 10.0, "PENDING": 120.0}
"""How long a run may be in a state without a process, since processes take time to start."""

RESCHEDULE_AFTER_SECONDS = 15.0
"""How long after its crash a run is rescheduled.

A worker reports a crash again some seconds later. Earlier than this, that report would hit the rescheduled run.
"""

RECENT = timedelta(days=2)
"""A run that crashed earlier is not rescheduled."""

WAITING = "Waiting"
"""The name of the state of a run that waits for others."""

_DUE = ["Scheduled", "Late", "AwaitingRetry", WAITING]
"""The names of the states of runs that a worker takes when it has room."""

WAITS_LABEL = "spin.waits"
"""The label with how often a run has waited after its start. Prefect counts its going on as another start."""

WORKER_LABEL = "prefect.worker.name"

HOST_LABEL, PID_LABEL, START_TIME_LABEL = "spin.host", "spin.pid", "spin.born"
"""Labels that name the process of a run of the command line: its machine, its id, its start time."""

_POOL = {"name": {"any_": [local.POOL]}}

_GONE = "Its process is gone."

_AGAIN = "It crashed, and continues by itself. What is finished is reused."

LATER = "It was stopped together with the server. It continues at the next spin up, and what is finished is reused."

_LOST_TASK = "The process of this try is gone."

_TASK_SECONDS = 30.0
"""How long after its run's last change a task may still be running: its own last state may arrive late."""


def check_runs(server: Server, reruns: int = local.RERUNS) -> None:
    """Set dead runs to crashed, and reschedule crashed ones, once.

    Does nothing if the server is away or busy: this is called again a few seconds later.

    Args:
        server: The server of `spin up`.
        reruns: How often a run is rescheduled at most.
    """
    with contextlib.suppress(TryAgain):
        alive, now = _runs_with_process(), datetime.now(UTC)
        dead = [
            run
            for run in _runs(server, list(WITHOUT_PROCESS_SECONDS))
            if not is_on_other_machine(run["labels"])
            and run["id"] not in alive
            and _age(run, now) > WITHOUT_PROCESS_SECONDS[run["state_type"]]
        ]
        dead += [
            run
            for run in _runs(server, list(WITHOUT_PROCESS_SECONDS), deployed=False)
            if _has_lost_process(run["labels"])
        ]
        for run in dead:
            cancelling = run["state_type"] == "CANCELLING"
            _set_state(server, run, {"type": "CANCELLED" if cancelling else "CRASHED", "message": _GONE})
        for run in _runs(server, ["CRASHED"], since=now - RECENT):
            # A run count of 0: it never began, and what prevented that would do so again.
            if run["id"] not in alive and 0 < starts(run) <= reruns and _age(run, now) > RESCHEDULE_AFTER_SECONDS:
                _set_state(server, run, {"type": "SCHEDULED", "name": "AwaitingRetry", "message": _AGAIN})
        _end_lost_tasks(server, now)


def continue_later(server: Server, since: datetime) -> None:
    """Schedule the runs that have crashed since a time, which is when `spin up` began to end: it stopped them itself.

    Does nothing if the server is away. The next `spin up` finds those runs as crashed then.
    """
    with contextlib.suppress(TryAgain):
        for run in _runs(server, ["CRASHED"], since=since):
            if run["run_count"] > 0 and not is_on_other_machine(run["labels"]):
                _set_state(server, run, {"type": "SCHEDULED", "name": "AwaitingRetry", "message": LATER})


def explain_waiting(server: Server, at_once: int) -> None:
    """Name the state of runs that are due and for which the worker has no room `Waiting`, with the reason.

    The reason is also in their logs, where the UI opens a run. Such runs get the names that their flows will give them.

    Args:
        server: The server of `spin up`.
        at_once: How many runs the worker executes at once; 0 for any number.
    """
    now = datetime.now(UTC)
    due = {
        "state": {"type": {"any_": ["SCHEDULED"]}, "name": {"any_": _DUE}},
        "next_scheduled_start_time": {"before_": (now - timedelta(seconds=EVERY_SECONDS)).isoformat()},
    }
    running = _runs(server, list(WITHOUT_PROCESS_SECONDS))
    if not at_once or len(running) < at_once:
        return
    for run in server.post("/flow_runs/filter", {"flow_runs": due, "work_pools": _POOL}):
        message = f"waits: {_reason(run, running)}"
        if (run["state_name"], run["state"]["message"]) != (WAITING, message):
            details = {"scheduled_time": run["next_scheduled_start_time"]}
            state = {"type": "SCHEDULED", "name": WAITING, "message": message, "state_details": details}
            server.post(f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
            _log(server, run, message, now)
        if run["name"] != (name := shown_name(run)):
            server.patch(f"/flow_runs/{run['id']}", {"name": name})


def _log(server: Server, run: Mapping[str, Any], message: str, now: datetime) -> None:
    """Add a line to the log of a run that has no process yet."""
    line = {"name": "prefect.flow_runs", "level": logging.INFO, "message": message, "timestamp": now.isoformat()}
    server.post("/logs/", [line | {"flow_run_id": run["id"]}])


def _reason(run: Mapping[str, Any], running: list[Any]) -> str:
    """Why a run waits for those that the worker executes: one of its own lineage, or any."""
    lineage = lineage_of(run)
    same = [other for other in running if lineage and lineage_of(other) == lineage]
    verb = "waits" if all(other["state_name"] == WAITING for other in same or running) else "computes"
    if same:
        return f"another run of lineage {lineage} {verb}; this one continues after it"
    lineages = sorted({lineage_of(other) or other["name"] for other in running})
    verb = verb if len(lineages) == 1 else verb.removesuffix("s")
    return f"{', '.join(f'a run of {name}' for name in lineages)} {verb}; spin up --at-once allows more"


def starts(run: Mapping[str, Any]) -> int:
    """How often a run was started."""
    return int(run["run_count"]) - int((run["labels"] or {}).get(WAITS_LABEL, 0))


def is_on_other_machine(labels: Mapping[str, Any] | None) -> bool:
    """Whether the run with these labels belongs to a worker of another machine.

    Workers label runs before they start them. Prefect's `infrastructure_pid` does not help: it is the bare number of a
    process, without its machine.
    """
    return bool((labels or {}).get(WORKER_LABEL, local.WORKER) != local.WORKER)


def label_with_process() -> None:
    """Label the current run, which no worker has started, with this process. Errors of the server are ignored."""
    from uuid import UUID

    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.runtime import flow_run

    with (
        contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError),
        get_client(sync_client=True) as client,
    ):
        client.update_flow_run_labels(UUID(flow_run.id), process_labels(os.getpid()))


def process_labels(pid: int) -> dict[str, Any]:
    """The labels of a run that a process of this machine executes."""
    return {HOST_LABEL: os.uname().nodename, PID_LABEL: pid, START_TIME_LABEL: process.start_time(pid)}


def _has_lost_process(labels: Mapping[str, Any] | None) -> bool:
    """Whether these labels name a process of this machine that is gone."""
    labels = labels or {}
    return (
        labels.get(HOST_LABEL) == os.uname().nodename
        and process.start_time(labels[PID_LABEL]) != labels[START_TIME_LABEL]
    )


def _runs_with_process() -> set[str]:
    """The ids of runs that have a process on this machine: their own, or one that they have started."""
    return process.environment_values("PREFECT__FLOW_RUN_ID")


def _runs(server: Server, states: list[str], since: datetime | None = None, *, deployed: bool = True) -> list[Any]:
    """Runs in some states, of deployments or without one; not those that ended before `since`."""
    selection: dict[str, Any] = {"state": {"type": {"any_": states}}, "deployment_id": {"is_null_": not deployed}}
    if since:
        selection["end_time"] = {"after_": since.isoformat()}
    query = {"flow_runs": selection, **({"work_pools": _POOL} if deployed else {})}
    runs: list[Any] = server.post("/flow_runs/filter", query)
    return runs


def _end_lost_tasks(server: Server, now: datetime) -> None:
    """Set to crashed the tasks of runs that have ended, and those of a run's earlier tries.

    A process that is killed cannot report the end of its tasks. They would be shown as running for ever.
    """
    tasks = server.post("/task_runs/filter", {"task_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}})
    ids = sorted({task["flow_run_id"] for task in tasks if task["flow_run_id"]})
    if not ids:
        return
    runs = {run["id"]: run for run in server.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": ids}}})}
    for task in tasks:
        run = runs.get(task["flow_run_id"])
        if run is None or _age(run, now) < _TASK_SECONDS:
            continue
        has_ended = run["state_type"] not in ("RUNNING", "CANCELLING", "PAUSED")
        # A task that is pending does not have the number of its try yet.
        is_of_earlier_try = task["state_type"] == "RUNNING" and task["flow_run_run_count"] < starts(run)
        if has_ended or is_of_earlier_try:
            state = {"type": "CRASHED", "message": _LOST_TASK}
            server.post(f"/task_runs/{task['id']}/set_state", {"state": state, "force": True})


def _age(run: Any, now: datetime) -> float:
    """For how many seconds a run has been in its state."""
    return (now - datetime.fromisoformat(run["state"]["timestamp"])).total_seconds()


def _set_state(server: Server, run: Any, state: Any) -> None:
    server.post(f"/flow_runs/{run['id']}/set_state", {"state": state})
