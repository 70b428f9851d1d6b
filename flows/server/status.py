"""What `spin status` shows of a runs folder: its server, its runs, its lineages. And `spin down`."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import click

from flows.server import local, state
from flows.server.api import Server
from flows.server.run_names import shown_name
from flows.server.schedules import Schedule, list_schedules
from flows.server.watch import PID_LABEL, WAITING, starts
from spin_core.config.base import Frozen
from spin_core.errors import ConfigError, DamagedArtifact, SpinError, TryAgain, printable
from spin_core.lineage import phase_jobs
from spin_core.lineage.find import find_lineage, lineage_names
from spin_core.lineage.holders import Holder, holders
from spin_core.runtime import grace, process

DOWN_SECONDS = 180.0
"""How long `spin up` may take to end what it has started, once phases have saved their work."""

_UNFINISHED = [
    {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING", "PAUSED"]}},
    {"type": {"any_": ["SCHEDULED"]}, "name": {"any_": ["AwaitingRetry", WAITING]}},
]

_OF_DEPLOYMENTS = {"deployment_id": {"is_null_": False}}


_FAILED_WITHIN = timedelta(days=1)
"""For how long a failed run is shown."""

_MOST_FAILURES = 5
"""How many are shown at most."""

_PREFIX = re.compile(r"^(Flow|Task) run encountered an exception:?\s*(\w+: )?")
"""What Prefect writes before an error's message."""


class Phase(Frozen):
    """A phase that is running."""

    name: str
    percent: float | None
    """Its progress; None where that is not known yet."""


class Run(Frozen):
    """A run that is running, or about to continue."""

    name: str
    state: str
    started: int
    """How often it was started: more than once if it crashed."""
    phases: tuple[Phase, ...]
    waits: str
    """Why it waits; empty if it does not."""
    process: int | None = None
    """The process of a run of the command line; None for a deployment's run."""
    since: datetime | None = None
    """Since when the process computes; None where only the server knows the run."""


class Failure(Frozen):
    """A run that has failed and is not continued by itself."""

    name: str
    ended: datetime
    sentence: str
    """Why, in one line."""


class Head(Frozen):
    """A lineage's newest version."""

    lineage: str
    head: int | None
    """The version; None if not even θ_0 is built."""
    begun: bool
    """Whether the next iteration has begun and is not finished."""
    ended: str
    """Why nightly runs, or the gate, ended the lineage; empty if they did not."""


class Status(Frozen):
    """What `spin status` shows."""

    url: str
    """The server's address; empty if nothing is up here."""
    starting: bool
    """Whether `spin up` has been started here and is not ready yet."""
    unanswered: bool
    """Whether `spin up` is ready here, but its server does not answer: it is busy, restarts, or ends."""
    elsewhere: str
    """The name of the machine that serves the folder, if that is another one; else empty."""
    seconds: float
    """For how long it has been up."""
    password_file: str
    """The file with the server's password; empty if nothing is up here."""
    open_to_others: tuple[str, ...]
    """The state folder, and files in it, that other users may read or change."""
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    """The runs of deployments that have failed lately."""
    schedules: tuple[Schedule, ...]
    lineages: tuple[Head, ...]
    unreadable: tuple[str, ...]
    """Lineages that this version cannot read."""


def status(runs: Path) -> Status:
    """The server and the runs of a folder, and the lineages in it."""
    up = local.find_up(runs)
    is_here = up is not None and not up.elsewhere
    server = _answering_server(runs, up)
    url = server.url if server else ""
    computing = holders(runs)
    folder = state.state_folder(runs)
    heads: list[Head] = []
    unreadable: list[str] = []
    for name in lineage_names(runs):
        try:
            heads.append(_head(runs, name))
        except DamagedArtifact:
            unreadable.append(name)
    return Status(
        url=url,
        starting=is_here and not url and not (up and up.url),
        unanswered=is_here and not url and bool(up and up.url),
        elsewhere=up.elsewhere if up else "",
        seconds=time.time() - up.since if up and url else 0.0,
        password_file=str(state.password_file(folder)) if url else "",
        open_to_others=tuple(map(str, state.open_to_others(folder))),
        runs=tuple(_with_holders(server, computing)),
        failures=tuple(server.failures) if server else (),
        schedules=tuple(server.schedules) if server else (),
        lineages=tuple(heads),
        unreadable=tuple(unreadable),
    )


class _Answers(NamedTuple):
    """What the server of `spin up` answers."""

    url: str
    runs: list[Run]
    failures: list[Failure]
    schedules: list[Schedule]


def _answering_server(runs: Path, up: local.Up | None) -> _Answers | None:
    """What the folder's server answers; None if there is none, or if it does not answer."""
    if up and local.answers(up):
        with contextlib.suppress(TryAgain):  # it starts, ends, or is busy
            server = _server(runs, up.url)
            failures = recent_failures(server, datetime.now(UTC))
            return _Answers(up.url, _unfinished_runs(server), failures, list_schedules(server))
    return None


def _with_holders(server: _Answers | None, computing: list[Holder]) -> list[Run]:
    """The server's runs, and the runs of the command line of which it does not know."""
    by_pid = {holder.pid: holder for holder in computing}
    runs: list[Run] = []
    for run in server.runs if server else ():
        holder = by_pid.pop(run.process, None) if run.process else None
        runs.append(run.model_copy(update={"since": holder.since}) if holder else run)
    for pid, holder in by_pid.items():
        if server and process.environment_value(pid, "SPIN_UP"):
            continue  # a deployment's run, which the server knows
        phases = tuple(Phase(name=title, percent=None) for title in holder.phases)
        runs.append(
            Run(name=holder.lineage, state="Running", started=1, phases=phases, waits="", process=pid,
                since=holder.since)
        )  # fmt: skip
    return runs


def _server(runs: Path, url: str) -> Server:
    """The server of a folder, with its password."""
    return Server(url, state.read_password(state.state_folder(runs)))


def _unfinished_runs(server: Server, selection: Mapping[str, Any] | None = None) -> list[Run]:
    """The unfinished runs of a server, all or a selection, with their running phases."""
    runs = []
    for states in _UNFINISHED:
        query = {"flow_runs": {"state": states, **(selection or {})}, "sort": "START_TIME_ASC"}
        for run in server.post("/flow_runs/filter", query):
            running = {
                "flow_runs": {"id": {"any_": [run["id"]]}},
                "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
            }
            phases = [
                Phase(name=task["name"], percent=_percent(server, task["id"]))
                for task in server.post("/task_runs/filter", running)
            ]
            state, waits = run["state_name"], run["state"]["message"] or ""
            runs.append(
                Run(
                    name=shown_name(run),
                    state=state,
                    started=starts(run),
                    phases=tuple(phases),
                    waits=waits.removeprefix("waits: ") if state == WAITING else "",
                    process=(run["labels"] or {}).get(PID_LABEL),
                )
            )
    return runs


def recent_failures(server: Server, now: datetime) -> list[Failure]:
    """The newest failed runs of the last day, the newest first. Raises what `Server.request` does."""
    query = {
        "flow_runs": {
            "state": {"type": {"any_": ["FAILED", "CRASHED"]}},
            "end_time": {"after_": (now - _FAILED_WITHIN).isoformat()},
        },
        "sort": "END_TIME_DESC",
        "limit": _MOST_FAILURES,
    }
    return [_failure(run) for run in server.post("/flow_runs/filter", query)]


def _failure(run: Mapping[str, Any]) -> Failure:
    """A failed run with the sentence of its error."""
    message = _PREFIX.sub("", run["state"]["message"] or "").strip().partition("\n")[0]
    return Failure(
        name=shown_name(run),
        ended=datetime.fromisoformat(run["end_time"]),
        sentence=printable(message) or f"{run['state_name']}: its page in the UI has the log",
    )


def _percent(server: Server, task: str) -> float | None:
    """The progress of a phase, by its newest progress bar."""
    query = {"artifacts": {"task_run_id": {"any_": [task]}, "type": {"any_": ["progress"]}}, "sort": "CREATED_DESC"}
    bars = server.post("/artifacts/filter", query)
    return float(bars[0]["data"]) if bars else None


def _head(runs: Path, name: str) -> Head:
    """The newest version of a lineage, and whether it goes on."""
    lineage = find_lineage(runs, name)
    head = len(lineage.records())
    nights = [json.loads(path.read_text("utf-8")) for path in (lineage.root / "nights").glob("*.json")]
    ended = next((night["ended"] for night in nights if night["iterations"] == head and night["ended"]), "")
    is_built = bool(head or lineage.reports(0)) or phase_jobs.is_base_built(lineage)
    return Head(
        lineage=name,
        head=head if is_built else None,
        begun=lineage.iteration(head).exists(),
        ended=lineage.ended_by_gate() or ended,
    )


def down(runs: Path) -> None:
    """End the `spin up` of a folder and wait for that. Its runs save their work, and continue at the next `spin up`.

    Runs of the command line are not its runs, and continue.

    Raises:
        ConfigError: Another machine, or another user, serves the folder.
        TryAgain: It has not ended in time.
    """
    up = local.find_up(runs)
    if up is None:
        click.echo(f"nothing is up for {runs}")
        return
    local.reject_other_machine(up, runs)
    if not up.url:
        click.echo("spin up is still starting; it ends now")
    waiting: list[str] = []
    with contextlib.suppress(SpinError):  # a server that does not answer is ended all the same
        if local.answers(up):
            waiting = [run.name for run in _unfinished_runs(_server(runs, up.url), _OF_DEPLOYMENTS)]
    try:
        os.kill(up.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has ended meanwhile
    except PermissionError as error:
        raise ConfigError(f"another user's process {up.pid} serves {runs}: only they can end it") from error
    timeout = grace.longest_grace() + DOWN_SECONDS
    deadline = time.monotonic() + timeout
    while (now := local.find_up(runs)) and now.pid == up.pid:
        if time.monotonic() > deadline:
            raise TryAgain(f"process {up.pid} has not ended after {timeout:.0f} s: run spin down again")
        time.sleep(0.1)
    click.echo("down" + (f"; {', '.join(waiting)} will continue at the next spin up" if waiting else ""))
