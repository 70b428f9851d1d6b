"""One more iteration of a lineage: what a schedule triggers every night."""

import json
from typing import NamedTuple

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from flows.parameters import runs_folder
from flows.spin import continue_lineage
from spin_core import convergence, store
from spin_core import lineage as lineages
from spin_core.config import ControlsConfig, LineageName
from spin_core.lineage import Lineage
from spin_core.recipes import RecipeName, resolve


class Ending(NamedTuple):
    """Why nights have nothing more to do."""

    state: str
    """What such a run's state is called: `Converged`, or `Stopped` by the gate."""
    reason: str


@flow(name="nightly", flow_run_name="nightly-{lineage}", persist_result=False)
def nightly(
    lineage: LineageName, recipe: RecipeName = "demo", until_converged: bool = True, runs: str = ""
) -> State[None] | None:
    """Add one iteration to the lineage's head; an iteration that was begun and not ended is ended instead.

    Once the game has converged, or its gate has stopped it, nothing is played, and the nights' schedule is paused.

    Args:
        lineage: The name of the chain of model versions, in lower-case letters, digits and dashes.
        recipe: What to start the lineage with, if it does not exist yet.
        until_converged: Stop when the game has converged, by the lineage's `nightly` settings.
        runs: The folder that holds lineages; SPIN_RUNS, or runs, if left out.
    """
    folder = runs_folder(runs)
    root = lineages.check_name(folder, lineage)
    game = lineages.find(folder, lineage) if (root / "lineage.json").exists() else None
    note = root / "nights" / f"{flow_run.id}.json"
    # The same run, started again after a crash: it may have finished its iteration, and must not add a second.
    planned = json.loads(note.read_text("utf-8"))["iterations"] if note.exists() else None
    over = ending(game, until_converged) if game and not planned else None
    if not over:
        iterations = planned or (len(game.records()) + 1 if game else 1)
        config = (
            game.config.model_copy(update={"iterations": iterations, "controls": ControlsConfig()})
            if game
            else resolve(recipe, iterations=iterations)
        )
        note.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(note, {"iterations": iterations, "ended": ""})
        continue_lineage(runs, lineage, config)
        game = lineages.find(folder, lineage)
        over = ending(game, until_converged)
    if not over:
        return None
    assert game is not None, "it was there, or has been played"
    note.parent.mkdir(exist_ok=True)
    store.write_json(note, {"iterations": len(game.records()), "ended": over.reason})
    get_run_logger().info("%s: %s", over.state, over.reason)
    pause_schedules(lineage)
    return Completed(name=over.state, message=over.reason)


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
