"""The flow `evaluate`: scores a lineage's versions, or any model, on suites, after a run or without one."""

from collections.abc import Sequence
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.labels import add_tags, artifact_line, completed
from flows.parameters import OptionalName, Overrides
from flows.permissions import permitted_values, runs_folder
from flows.server.local import end_run_with_worker
from flows.server.temporary import end_with_temporary_server
from flows.server.watch import label_with_process
from flows.spin import first_opponent, started_again
from flows.turn import turn
from spin_core.config.resolve import RecipeName
from spin_core.leaderboard import scoring
from spin_core.leaderboard.board import Board
from spin_core.leaderboard.scoring import Suite
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage, trained_model
from spin_core.runtime.warm import warm_process
from spin_core.store import identity, lock
from spin_core.store.records import ModelVersion, PromptSet
from tasks.base import base_model
from tasks.evaluate import evaluate as score
from tasks.evaluate import show_note
from tasks.publish import publish_leaderboard
from tasks.push import push

Version = Annotated[int, Field(ge=0)]


@flow(name="evaluate", flow_run_name="evaluate-{target}", persist_result=False)
def evaluate(
    target: str,
    versions: tuple[Version, ...] = (),
    suites: tuple[Suite, ...] = (),
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    recipe: RecipeName | None = None,
    lineage: OptionalName = "",
    runs: str = "",
) -> None:
    """Score a lineage's versions, or a model, on suites; existing scores are reused.

    Args:
        target: A lineage's name, or the folder of a model.
        versions: Which θ_t of a lineage; by default all, and the controls.
        suites: What to score them on; by default what the lineage's configuration names.
        overrides: Settings of evaluate, such as limits and local data.
        recipe: For a model: whose settings, prompts and chat template to use.
        lineage: For a model: its name on the leaderboard; by default its folder's name.
        runs: The folder that holds lineages. If empty: that of `spin up`; elsewhere SPIN_RUNS, or runs.
    """
    end_run_with_worker()
    prepared = scoring.prepare(runs_folder(runs), target, suites, [permitted_values(overrides)], recipe or "", lineage)
    with turn(prepared.root):
        _score_versions(prepared, versions)
    return completed(artifact_line("leaderboard", prepared.name), None)


@flow(name="evaluate", flow_run_name="evaluate-{lineage.name}", persist_result=False, validate_parameters=False)
def evaluate_local(lineage: Lineage, versions: Sequence[int]) -> Board:
    """Score a lineage whose settings are resolved already: what the command line calls."""
    end_with_temporary_server()
    label_with_process()
    return completed(artifact_line("leaderboard", lineage.name), _score_versions(lineage, versions))


def _score_versions(lineage: Lineage, wanted: Sequence[int]) -> Board:
    """Score some versions, or all and the controls, with the lineage locked; returns the leaderboard.

    Args:
        lineage: The lineage, with the settings of evaluation that were asked for.
        wanted: Which θ_t; all versions and the controls if empty.
    """
    add_tags(recipe=lineage.config.recipe, lineage=lineage.name)
    with lock.locked(lineage.root, wait=started_again()), warm_process.enabled():
        records = lineage.records()
        base, prompts = _start(lineage)
        for t in scoring.versions(lineage, wanted):
            player = lineage.player(t - 1) if t else base
            against = lineage.reports(records[t - 1].opponent.t) if t else ()
            score(lineage, player, prompts, tuple(against), score_again=False)
        if not wanted:
            _score_controls(lineage, base, prompts)
        # Published with the lineage's own settings, whose main score and headline may differ from those asked for here.
        own = find_lineage(lineage.runs, lineage.name)
        board = publish_leaderboard(own)
        push(own)
        return board


def _score_controls(lineage: Lineage, base: ModelVersion, prompts: PromptSet | None) -> None:
    """Score the controls that exist: trained models, and θ_0 at other temperatures."""
    of_base = tuple(lineage.reports(0))
    trained = [path.parents[1] for path in sorted((lineage.root / "controls").glob(f"*/model/{identity.MANIFEST}"))]
    temperatures = {lineage.control(f"temperature-{value:g}"): value for value in lineage.config.controls.temperatures}
    config = lineage.config.evaluate
    sampled = [folder for folder in temperatures if folder.is_dir() and (config.self_play or config.exact)]
    if trained or sampled:
        show_note(f"also scored: {', '.join(folder.name for folder in (*trained, *sampled))}")
    for folder in trained:
        model = trained_model(folder / "model")
        score(lineage, model, prompts, of_base, folder=folder / "eval", score_again=False)
    for folder in sampled:
        score(lineage, base, prompts, folder=folder / "eval", temperature=temperatures[folder], score_again=False)


def _start(lineage: Lineage) -> tuple[ModelVersion, PromptSet | None]:
    """θ_0 and the SFT data; no data for a model without iterations, unless a suite asks about held-out prompts."""
    config = lineage.config.evaluate
    held_out = config.self_play or config.exact or config.frontier or "human" in config.mt_bench.pairwise
    return first_opponent(lineage) if lineage.records() or held_out else (base_model(lineage), None)
