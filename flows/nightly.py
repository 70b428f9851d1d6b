"""One more iteration of a lineage: what a schedule triggers every night."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from flows.labels import add_tags, artifact_line, completed
from flows.parameters import runs_folder
from flows.spin import continue_lineage
from spin_core.config.controls import ControlsConfig
from spin_core.config.resolve import RecipeName, resolve
from spin_core.config.run import LineageName
from spin_core.errors import LineageBusy
from spin_core.leaderboard import convergence
from spin_core.lineage.find import find_lineage, lineage_folder
from spin_core.lineage.lineage import Lineage
from spin_core.store import files


class Ending(NamedTuple):
    """Why nights have nothing more to do."""

    state: str
    """What such a run's state is called: `Converged`, or `Stopped` by the gate."""
    reason: str


BY = f"process {os.getpid()} on {os.uname().nodename}"
"""What the lock of a lineage says of us."""


@flow(name="nightly", flow_run_name="nightly-{lineage}", persist_result=False)
def nightly(
    lineage: LineageName, recipe: RecipeName = "demo", until_converged: bool = True, runs: str = ""
) -> State[None] | None:
    """Add one iteration to the lineage's head; an iteration that was begun and not ended is ended instead.

    A night that was due while another of the same lineage played is left out, so that missed nights do not pile up.
    Once the game has converged, or its gate has stopped it, nothing is played, and the nights' schedule is paused.

    Args:
        lineage: The name of the chain of model versions, in lower-case letters, digits and dashes.
        recipe: What to start the lineage with, if it does not exist yet.
        until_converged: Stop when the game has converged, by the lineage's `nightly` settings.
        runs: The folder that holds lineages; SPIN_RUNS, or runs, if left out.
    """
    folder = runs_folder(runs)
    root = lineage_folder(folder, lineage)
    game = find_lineage(folder, lineage) if (root / "lineage.json").exists() else None
    add_tags(recipe=game.config.recipe if game else recipe, lineage=lineage)
    note = root / "nights" / f"{flow_run.id}.json"
    # The same run, started again after a crash: it may have finished its iteration, and must not add a second.
    planned = json.loads(note.read_text("utf-8"))["iterations"] if note.exists() else None
    if not planned and (until := played_until(root, flow_run.scheduled_start_time)):
        return left_out(lineage, f"ended {until:%Y-%m-%d %H:%M} UTC")
    over, played = (ending(game, until_converged) if game and not planned else None), ""
    if not over:
        iterations = planned or (len(game.records()) + 1 if game else 1)
        config = (
            game.config.model_copy(update={"iterations": iterations, "controls": ControlsConfig()})
            if game
            else resolve(recipe, iterations=iterations)
        )
        note.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(note, {"iterations": iterations, "ended": "", "by": BY})
        try:
            continue_lineage(runs, lineage, config)
        except LineageBusy:
            if not held_by_a_night(root):
                raise
            note.unlink()
            return left_out(lineage, "still plays")
        played = datetime.now(UTC).isoformat()
        game = find_lineage(folder, lineage)
        over = ending(game, until_converged)
    assert game is not None, "it was there, or has been played"
    note.parent.mkdir(exist_ok=True)
    written = {"iterations": len(game.records()), "ended": over.reason if over else "", "by": BY, "played": played}
    files.write_json(note, written)
    place = artifact_line("leaderboard", lineage)
    if not over:
        return completed(place, None)
    get_run_logger().info("%s: %s; %s", over.state, over.reason, place)
    pause_schedules(lineage)
    return Completed(name=over.state, message=f"{over.reason}; {place}")


def notes(root: Path) -> list[dict[str, Any]]:
    """What the lineage's nights have written down: by which process they play, and when they had played."""
    return [json.loads(path.read_text("utf-8")) for path in (root / "nights").glob("*.json")]


def played_until(root: Path, due: datetime) -> datetime | None:
    """When the last night of the lineage ended, if one played at that time or has since; None if none did.

    One that died has not ended, and is made up for.
    """
    ends = [datetime.fromisoformat(note["played"]) for note in notes(root) if note.get("played")]
    return max((end for end in ends if end >= due), default=None)


def held_by_a_night(root: Path) -> bool:
    """Whether it is a night that holds the lineage's lock, and not somebody else."""
    holder = (root / ".lock").read_text("utf-8")
    return any(note.get("by") == holder and not note.get("played") for note in notes(root))


def left_out(lineage: str, why: str) -> State[None]:
    """The end of a night that adds nothing."""
    reason = f"due while another played: a night of {lineage} that {why}"
    get_run_logger().info("left out, %s", reason)
    return Completed(name="LeftOut", message=reason)


def ending(game: Lineage, until_converged: bool) -> Ending | None:
    """Whether another night would gain nothing, or is not allowed to play."""
    if reason := game.ended_by_gate():
        return Ending("Stopped", reason)
    if until_converged and (reason := convergence.reason(game)):
        return Ending("Converged", reason)
    return None


def pause_schedules(lineage: str) -> None:
    """Pause those schedules of our deployment that play this lineage."""
    if not deployment.id:
        return
    with get_client(sync_client=True) as client:
        ours = client.read_deployment(deployment.id)
        for one in ours.schedules:
            if one.active and {**ours.parameters, **one.parameters}.get("lineage") == lineage:
                # The server empties the parameters of a schedule that is changed without naming them.
                client.update_deployment_schedule(ours.id, one.id, active=False, parameters=one.parameters)
