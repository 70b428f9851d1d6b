"""Scoring after a game, or without one: a lineage's versions, or any model, on suites of one's choice."""

from collections.abc import Sequence
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.labels import add_tags, artifact_line, completed
from flows.parameters import Overrides, OwnName, given, runs_folder
from flows.server.local import end_with_worker
from flows.server.temporary import end_together
from flows.server.watch import label_with_process
from flows.spin import first_opponent, started_again
from spin_core.config.resolve import RecipeName
from spin_core.leaderboard import scoring
from spin_core.leaderboard.board import Board
from spin_core.leaderboard.scoring import Suite
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage, trained_model
from spin_core.runtime import warm
from spin_core.store import identity, lock
from spin_core.store.records import ModelVersion, PromptSet
from tasks.base import base_model
from tasks.evaluate import evaluate as score
from tasks.evaluate import tell
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
    lineage: OwnName = "",
    runs: str = "",
) -> None:
    """Score a lineage's versions, or a model, on suites; what is scored already is reused.

    Args:
        target: A lineage's name, or the folder of a model that is no lineage's.
        versions: Which θ_t of a lineage; all, and the controls beside them, if left out.
        suites: What to score them on; what the lineage's configuration names, if left out.
        overrides: Settings of evaluate, as limits and local data.
        recipe: For a model: whose settings, prompts and chat template it has.
        lineage: For a model: the name under which it stands on the leaderboard; its folder's if left out.
        runs: The folder that holds lineages; SPIN_RUNS, or runs, if left out.
    """
    end_with_worker()
    game = scoring.prepare(runs_folder(runs), target, suites, [given(overrides)], recipe or "", lineage)
    score_versions(game, versions)
    return completed(artifact_line("leaderboard", game.name), None)


@flow(name="evaluate", flow_run_name="evaluate-{game.name}", persist_result=False, validate_parameters=False)
def evaluate_local(game: Lineage, versions: Sequence[int]) -> Board:
    """The same with all settings resolved already: what the command line runs."""
    end_together()
    label_with_process()
    return completed(artifact_line("leaderboard", game.name), score_versions(game, versions))


def score_versions(game: Lineage, wanted: Sequence[int]) -> Board:
    """Every suite on the versions wanted, or on all and the controls, alone in the lineage's folder."""
    add_tags(recipe=game.config.recipe, lineage=game.name)
    with lock.locked(game.root, wait=started_again()), warm.warm.phases():
        records = game.records()
        base, prompts = start_of(game)
        for t in scoring.versions(game, wanted):
            player = game.player(t - 1) if t else base
            against = game.reports(records[t - 1].opponent.t) if t else ()
            score(game, player, prompts, tuple(against), anew=False)
        if not wanted:
            score_controls(game, base, prompts)
        # As the lineage has it: its main score and headline are not those that were asked for now.
        own = find_lineage(game.runs, game.name)
        board = publish_leaderboard(own)
        push(own)
        return board


def score_controls(game: Lineage, base: ModelVersion, prompts: PromptSet | None) -> None:
    """The same suites on what was trained beside the game, and on θ_0 at other temperatures, where these are there."""
    of_base = tuple(game.reports(0))
    trained = [found.parents[1] for found in sorted((game.root / "controls").glob(f"*/model/{identity.MANIFEST}"))]
    at = {game.control(f"temperature-{one:g}"): one for one in game.config.controls.temperatures}
    asked = game.config.evaluate
    cooled = [folder for folder in at if folder.is_dir() and (asked.self_play or asked.exact)]
    if trained or cooled:
        tell(f"scored too: {', '.join(folder.name for folder in (*trained, *cooled))}")
    for folder in trained:
        model = trained_model(folder / "model")
        score(game, model, prompts, of_base, folder=folder / "eval", anew=False)
    for folder in cooled:
        score(game, base, prompts, folder=folder / "eval", temperature=at[folder], anew=False)


def start_of(game: Lineage) -> tuple[ModelVersion, PromptSet | None]:
    """θ_0 and the SFT data; of a model that has played nothing, no data unless a suite asks about held-out prompts."""
    config = game.config.evaluate
    held_out = config.self_play or config.exact or "human" in config.mt_bench.pairwise
    return first_opponent(game) if game.records() or held_out else (base_model(game), None)
