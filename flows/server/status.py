"""What `spin status` shows of a runs folder: its server, its runs, its lineages. And `spin down`."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flows.server import local, state
from flows.server.api import Server
from flows.server.schedules import Schedule, list_schedules
from flows.server.watch import WAITING, starts
from spin_core.config.base import Frozen
from spin_core.errors import ConfigError, DamagedArtifact, SpinError, TryAgain
from spin_core.lineage import phase_jobs
from spin_core.lineage.find import find_lineage, lineage_names
from spin_core.runtime import grace

DOWN_SECONDS = 180.0
"""How long `spin up` may take to end what it has started, once phases have saved their work."""

_UNFINISHED = [
    {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING", "PAUSED"]}},
    {"type": {"any_": ["SCHEDULED"]}, "name": {"any_": ["AwaitingRetry", WAITING]}},
]

_OF_DEPLOYMENTS = {"deployment_id": {"is_null_": False}}


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
    """Whether `spin up` runs here but its server does not answer: it starts, or ends."""
    elsewhere: str
    """The name of the machine that serves the folder, if that is another one; else empty."""
    seconds: float
    """For how long it has been up."""
    password_file: str
    """The file with the server's password; empty if nothing is up here."""
    open_to_others: tuple[str, ...]
    """The state folder, and files in it, that other users may read or change."""
    runs: tuple[Run, ...]
    schedules: tuple[Schedule, ...]
    lineages: tuple[Head, ...]
    unreadable: tuple[str, ...]
    """Lineages that this version cannot read."""


def status(runs: Path) -> Status:
    """The server and the runs of a folder, and the lineages in it."""
    up = local.find_up(runs)
    url = up.url if up and local.answers(up) else ""
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
        starting=up is not None and not up.elsewhere and not url,
        elsewhere=up.elsewhere if up else "",
        seconds=time.time() - up.since if up and url else 0.0,
        password_file=str(state.password_file(folder)) if url else "",
        open_to_others=tuple(map(str, state.open_to_others(folder))),
        runs=tuple(_unfinished_runs(_server(runs, url))) if url else (),
        schedules=tuple(list_schedules(_server(runs, url))) if url else (),
        lineages=tuple(heads),
        unreadable=tuple(unreadable),
    )


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
                    name=run["name"],
                    state=state,
                    started=starts(run),
                    phases=tuple(phases),
                    waits=waits.removeprefix("waits: ") if state == WAITING else "",
                )
            )
    return runs


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
