"""`spin status` and `spin down`: what is up for a folder of lineages, what runs there, and the end of it."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flows.server import api, local
from flows.server.api import Server
from spin_core.config.base import Frozen
from spin_core.errors import ConfigError, DamagedArtifact, SpinError, TryAgain
from spin_core.lineage.find import find_lineage, lineage_names
from spin_core.runtime import grace

DOWN_SECONDS = 180.0
"""How long `spin up` may take to end all that it has started, once phases have saved their work."""

GOING_ON = [{"type": {"any_": ["RUNNING", "PENDING", "CANCELLING", "PAUSED"]}}, {"name": {"any_": ["AwaitingRetry"]}}]

OF_DEPLOYMENTS = {"deployment_id": {"is_null_": False}}


class Phase(Frozen):
    """A phase that works."""

    name: str
    percent: float | None
    """How far it is; None where that is not known yet."""


class Run(Frozen):
    """A run that is under way, or about to go on."""

    name: str
    state: str
    started: int
    """How often it was started: more than once if it crashed."""
    phases: tuple[Phase, ...]


class Head(Frozen):
    """A lineage's newest version."""

    lineage: str
    head: int
    begun: bool
    """An iteration after it has begun and not ended."""
    ended: str
    """Why the nights, or the gate, ended the game; empty if they did not."""


class Status(Frozen):
    """What there is."""

    url: str
    """The server's address; empty if nothing is up here."""
    elsewhere: str
    """The name of the machine that serves the folder, where that is another."""
    seconds: float
    """For how long it has been up."""
    runs: tuple[Run, ...]
    lineages: tuple[Head, ...]
    unreadable: tuple[str, ...]
    """Lineages that this version cannot read."""


def status(runs: Path) -> Status:
    """What is up for a folder, and what lies in it."""
    up = local.find_up(runs)
    url = up.url if up and local.answers(up) else ""
    heads: list[Head] = []
    unreadable: list[str] = []
    for name in lineage_names(runs):
        try:
            heads.append(head_of(runs, name))
        except DamagedArtifact:
            unreadable.append(name)
    return Status(
        url=url,
        elsewhere=up.elsewhere if up else "",
        seconds=time.time() - up.since if up and url else 0.0,
        runs=tuple(under_way(server_of(runs, url))) if url else (),
        lineages=tuple(heads),
        unreadable=tuple(unreadable),
    )


def server_of(runs: Path, url: str) -> Server:
    """The server of a folder, with its password."""
    return Server(url, api.read_password(local.state_folder(runs)))


def under_way(server: Server, only: Mapping[str, Any] | None = None) -> list[Run]:
    """The runs that a server knows to be going on, all or some, with the phases that work in them."""
    found = []
    for states in GOING_ON:
        query = {"flow_runs": {"state": states, **(only or {})}, "sort": "START_TIME_ASC"}
        for one in server.ask("/flow_runs/filter", query):
            mine = {"flow_runs": {"id": {"any_": [one["id"]]}}, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
            phases = [
                Phase(name=task["name"], percent=percent(server, task["id"]))
                for task in server.ask("/task_runs/filter", mine)
            ]
            found.append(Run(name=one["name"], state=one["state_name"], started=one["run_count"], phases=tuple(phases)))
    return found


def percent(server: Server, task: str) -> float | None:
    """How far a phase is, by its newest progress bar."""
    query = {"artifacts": {"task_run_id": {"any_": [task]}, "type": {"any_": ["progress"]}}, "sort": "CREATED_DESC"}
    bars = server.ask("/artifacts/filter", query)
    return float(bars[0]["data"]) if bars else None


def head_of(runs: Path, name: str) -> Head:
    """The newest version of a lineage, and whether the game goes on."""
    game = find_lineage(runs, name)
    head = len(game.records())
    nights = [json.loads(path.read_text("utf-8")) for path in (game.root / "nights").glob("*.json")]
    ended = next((night["ended"] for night in nights if night["iterations"] == head and night["ended"]), "")
    return Head(lineage=name, head=head, begun=game.iteration(head).exists(), ended=game.ended_by_gate() or ended)


def down(runs: Path) -> None:
    """End the `spin up` of a folder and wait for it. What it runs saves its work, and goes on at the next one.

    Runs of the command line are not its own.
    """
    up = local.find_up(runs)
    if up is None:
        click.echo(f"nothing is up for {runs}")
        return
    local.refuse_elsewhere(up, runs)
    waiting: list[str] = []
    with contextlib.suppress(SpinError):  # a busy server is ended all the same
        if local.answers(up):
            waiting = [run.name for run in under_way(server_of(runs, up.url), OF_DEPLOYMENTS)]
    try:
        os.kill(up.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended meanwhile
    except PermissionError as error:
        raise ConfigError(f"another user's process {up.pid} serves {runs}: only they can end it") from error
    patience = grace.longest_grace() + DOWN_SECONDS
    deadline = time.monotonic() + patience
    while (now := local.find_up(runs)) and now.pid == up.pid:
        if time.monotonic() > deadline:
            raise TryAgain(f"process {up.pid} has not ended after {patience:.0f} s: run spin down again")
        time.sleep(0.1)
    click.echo("down" + (f"; {', '.join(waiting)} will go on at the next spin up" if waiting else ""))
