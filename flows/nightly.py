"""The flow `nightly`: one more iteration of a lineage, triggered by a schedule."""

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from flows.labels import add_tags, artifact_line, completed
from flows.parameters import AS_THE_LINEAGE, OptionalName, RecipeChoice
from flows.permissions import runs_folder
from flows.requested import unknown_lineage
from flows.server import schedules
from flows.server.local import end_run_with_worker
from flows.spin import continue_lineage
from flows.turn import turn
from spin_core.config.controls import ControlsConfig
from spin_core.config.resolve import resolve
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.leaderboard import convergence
from spin_core.lineage.find import find_lineage, lineage_exists, lineage_folder
from spin_core.lineage.lineage import Lineage
from spin_core.store import files


class Ending(NamedTuple):
    """Why nightly runs have nothing more to add to a lineage."""

    state: str
    """The name of the run's final state: `Converged`, or `Stopped` by the gate."""
    reason: str


def run_name() -> str:
    """`nightly-mylineage`."""
    return f"nightly-{_lineage_of_run(flow_run.id, flow_run.parameters['lineage']) or 'without-lineage'}"


@flow(name="nightly", flow_run_name=run_name, persist_result=False)
def nightly(
    lineage: OptionalName = "", recipe: RecipeChoice = AS_THE_LINEAGE, until_converged: bool = True, runs: str = ""
) -> State[None] | None:
    """Add one iteration to a lineage, or finish the iteration that was begun and not finished.

    A run that was due while another nightly run of its lineage was busy is skipped, so that missed runs do not pile up.
    Once the lineage has converged, or its gate has stopped it, nothing is added, and its schedule is paused.

    Args:
        lineage: The name of the chain of model versions, in lower-case letters, digits and dashes. There is no default.
        recipe: What to start the lineage with, if it does not exist yet.
        until_converged: Stop when the lineage has converged, by its `nightly` settings. True, unless it is set.
        runs: The folder that holds lineages. If empty: that of `spin up`; elsewhere SPIN_RUNS, or runs.
    """
    lineage = _checked_lineage(_lineage_of_run(flow_run.id, lineage))
    folder = runs_folder(runs)
    if recipe == AS_THE_LINEAGE and not lineage_exists(folder, lineage):
        raise unknown_lineage(folder, lineage)
    end_run_with_worker()
    with turn(lineage_folder(folder, lineage)):
        return _add_iteration(folder, lineage, recipe, until_converged)


def _add_iteration(folder: Path, lineage: str, recipe: str, until_converged: bool) -> State[None] | None:
    """Add an iteration, unless another nightly run has done so meanwhile, or the lineage has ended."""
    root = lineage_folder(folder, lineage)
    existing = find_lineage(folder, lineage) if lineage_exists(folder, lineage) else None
    add_tags(recipe=existing.config.recipe if existing else recipe, lineage=lineage)
    note = root / "nights" / f"{flow_run.id}.json"
    target_iterations = _target_iterations(note, existing)
    if not target_iterations and (end := _last_end_since(root, flow_run.scheduled_start_time)):
        return _skipped(lineage, f"it ended {end:%Y-%m-%d %H:%M} UTC")
    ending, ended_at = (_ending(existing, until_converged) if existing and not target_iterations else None), ""
    if not ending:
        config = _config(existing, recipe, target_iterations)
        _write_note(note, iterations=config.iterations)
        continue_lineage(folder, lineage, config)
        ended_at = datetime.now(UTC).isoformat()
        existing = find_lineage(folder, lineage)
        ending = _ending(existing, until_converged)
    assert existing is not None, "it existed, or was started"
    _write_note(note, iterations=len(existing.records()), ended=ending.reason if ending else "", ended_at=ended_at)
    line = artifact_line("leaderboard", lineage)
    if not ending:
        return completed(line, None)
    get_run_logger().info("%s: %s; %s", ending.state, ending.reason, line)
    _pause_schedules(lineage)
    return Completed(name=ending.state, message=f"{ending.reason}; {line}")


def _target_iterations(note: Path, lineage: Lineage | None) -> int | None:
    """The number of iterations to reach, if this run crashed or failed and was started again; else None.

    The run may have finished its iteration before it crashed, and must not add a second one. Other runs may have added
    more since it failed, which must stay.
    """
    if not note.exists():
        return None
    target = int(json.loads(note.read_text("utf-8"))["iterations"])
    return max(target, len(lineage.records())) if lineage else target


@cache
def _lineage_of_run(run: str | None, given: str) -> str:
    """The lineage of a run: the one given, or that of the schedule which planned the run; empty if there is none.

    What the schedule itself names counts, since a run may have been planned with parameters that it no longer has.
    """
    if not run:
        return given
    with get_client(sync_client=True) as client:
        details = client.read_flow_run(UUID(run))
        if not details.created_by or details.created_by.type != "SCHEDULE" or not details.deployment_id:
            return given
        current = client.read_deployment(details.deployment_id).schedules
    for schedule in current:
        if schedule.id == details.created_by.id:
            return schedules.named_lineage(schedule.model_dump())
    return schedules.lineage_in(details.created_by.display_value)  # the schedule was deleted meanwhile


def _checked_lineage(lineage: str) -> str:
    """The lineage's name. Raises `ConfigError` if it is empty."""
    if not lineage:
        raise ConfigError(
            "no lineage is named: fill in lineage in the form of this run or of its schedule, or set a schedule with "
            "spin nightly LINEAGE --at 02:00"
        )
    return lineage


def _config(lineage: Lineage | None, recipe: str, target_iterations: int | None) -> RunConfig:
    """The configuration with one more iteration than the lineage has, or with the target's number."""
    if lineage is None:
        return resolve(recipe, iterations=target_iterations or 1)
    iterations = target_iterations or len(lineage.records()) + 1
    return lineage.config.model_copy(update={"iterations": iterations, "controls": ControlsConfig()})


def _write_note(path: Path, *, iterations: int, ended: str = "", ended_at: str | None = None) -> None:
    """Write the note of this run: the `iterations` to reach; at its end, why the lineage ended, and the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"iterations": iterations, "ended": ended}
    # `played` is the time of the run's end, under the name that it has in the notes of all versions.
    files.write_json(path, note if ended_at is None else {**note, "played": ended_at})


def _notes(root: Path) -> list[dict[str, Any]]:
    """The notes of all nightly runs of a lineage."""
    return [json.loads(path.read_text("utf-8")) for path in (root / "nights").glob("*.json")]


def _last_end_since(root: Path, due: datetime) -> datetime | None:
    """When the last nightly run of the lineage ended, if one was running when this one was due, or has run since.

    A run that died has no end, so the next one adds the iteration instead.
    """
    ends = [datetime.fromisoformat(note["played"]) for note in _notes(root) if note.get("played")]
    return max((end for end in ends if end >= due), default=None)


def _skipped(name: str, why: str) -> State[None]:
    """The final state of a run that adds nothing."""
    reason = f"due while another nightly run of {name} was busy ({why})"
    get_run_logger().info("skipped, %s", reason)
    return Completed(name="Skipped", message=reason)


def _ending(lineage: Lineage, until_converged: bool) -> Ending | None:
    """Why another iteration would gain nothing, or is not allowed; None if there is no reason."""
    if reason := lineage.ended_by_gate():
        return Ending("Stopped", reason)
    if until_converged and (reason := convergence.reason(lineage)):
        return Ending("Converged", reason)
    return None


def _pause_schedules(name: str) -> None:
    """Pause the schedules of this run's deployment that continue a lineage."""
    if not deployment.id:
        return
    with get_client(sync_client=True) as client:
        current = client.read_deployment(deployment.id)
        for schedule in current.schedules:
            if schedule.active and schedules.named_lineage(schedule.model_dump()) == name:
                # The server empties the parameters of a schedule that is changed without naming them.
                client.update_deployment_schedule(current.id, schedule.id, active=False, parameters=schedule.parameters)
