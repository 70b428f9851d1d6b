"""The flow `spin`: T iterations of self-play fine-tuning. `run_iterations` is the algorithm."""

from functools import partial
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.controls import compare_with_controls
from flows.labels import add_tags, artifact_line, completed
from flows.parameters import AS_THE_LINEAGE, Iterations, OptionalName, Overrides, RecipeChoice
from flows.permissions import permitted_values, runs_folder
from flows.requested import requested
from flows.server.local import end_run_with_worker
from flows.server.run_names import spin_name
from flows.server.temporary import end_with_temporary_server
from flows.server.watch import label_with_process
from flows.turn import turn
from spin_core.config.run import RunConfig
from spin_core.leaderboard import gate
from spin_core.leaderboard.board import Board
from spin_core.leaderboard.opponents import answering_models
from spin_core.lineage import phase_jobs
from spin_core.lineage.find import find_lineage, lineage_exists
from spin_core.lineage.history import decision_before, record_iteration
from spin_core.lineage.lineage import SHARED, Lineage
from spin_core.lineage.start import start_lineage
from spin_core.preflight.prepare import prepare_run
from spin_core.runtime.warm import warm_process
from spin_core.store import lock
from spin_core.store.records import GenerationBatch, IterationArtifacts, ModelVersion, PromptSet
from tasks import time_left
from tasks.base import base_model, prepare_prompts, train_sft
from tasks.evaluate import Reports, evaluate
from tasks.generate import generate
from tasks.metrics import send_metrics
from tasks.pairs import build_pairs, score
from tasks.publish import publish_iteration, publish_leaderboard
from tasks.push import push
from tasks.train import train


def run_name() -> str:
    """`demo-mylineage`; without a recipe `mylineage`, and `demo` for the lineage that has the recipe's name."""
    return spin_name(flow_run.parameters["recipe"], flow_run.parameters["lineage"])


@flow(name="spin", flow_run_name=run_name, persist_result=False)
def spin(
    lineage: OptionalName = "",
    iterations: Iterations = 0,
    recipe: RecipeChoice = AS_THE_LINEAGE,
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    runs: str = "",
) -> None:
    """Continue the lineage of that name with its own settings, or start it with a recipe.

    Args:
        lineage: The name of the chain of model versions, in lower-case letters, digits and dashes. One that exists goes
            on with its own settings; for a new one choose a recipe, whose name is also the lineage's if this is empty.
        iterations: How many iterations the lineage has when the run ends, including those that it has already. 0 takes
            the number that it was started with, or for a new lineage the recipe's.
        recipe: For a new lineage, a complete configuration: demo (generated data, minutes on a CPU), tinystories (a
            real small model, on a CPU), smollm2-135m (one small GPU), zephyr-7b-paper (the paper's run),
            zephyr-7b-scripts (its authors' scripts), zephyr-7b (the same, corrected).
        overrides: Any other setting. What is left empty stays as the lineage or the recipe has it.
        runs: The folder that holds lineages. If empty: that of `spin up`; elsewhere SPIN_RUNS, or runs.
    """
    folder = runs_folder(runs)
    request = partial(requested, folder, lineage, recipe, iterations or None, permitted_values(overrides))
    name, config = request()
    add_tags(recipe=config.recipe, lineage=name)
    end_run_with_worker()
    with turn(folder / name):
        # Again, as a run for which this one waited may have continued the lineage.
        config = request()[1]
        finished = _finished_line(folder, name, config.iterations)
        continue_lineage(folder, name, config)
    return completed(finished + artifact_line("leaderboard", name), None)


def _finished_line(runs: Path, name: str, iterations: int) -> str:
    """What the end of a run says if the lineage had all its iterations before, as after a double click; else empty."""
    existing = len(find_lineage(runs, name).records()) if lineage_exists(runs, name) else 0
    if existing < iterations:
        return ""
    return f"no new iteration, since {name} has had {existing} already and {iterations} were asked for; "


@flow(name="spin", flow_run_name="{lineage.name}", persist_result=False, validate_parameters=False)
def run_local(lineage: Lineage) -> Board:
    """Run a lineage that is prepared already: what the command line calls."""
    end_with_temporary_server()
    label_with_process()
    add_tags(recipe=lineage.config.recipe, lineage=lineage.name)
    return completed(artifact_line("leaderboard", lineage.name), run_locked(lineage))


def continue_lineage(runs: Path, name: str, config: RunConfig) -> Board:
    """Check the run, then run until the lineage has `config.iterations` iterations. Waits while it is in use."""
    return run_locked(prepare_run(config, runs, name, warn=get_run_logger().warning, wait=True), wait=True)


def run_locked(lineage: Lineage, *, wait: bool = False) -> Board:
    """Run all iterations with the lineage's lock held."""
    with lock.locked(lineage.root, wait=wait or started_again()), warm_process.enabled():
        # Another process may have continued the lineage with other settings since this run was prepared.
        start_lineage(lineage.runs, lineage.name, lineage.config)
        with send_metrics(lineage):
            return run_iterations(lineage)


def started_again() -> bool:
    """Whether the run was started before, and crashed or stopped responding.

    Its earlier process may still be ending, and have the lock. So a run that was started again waits for the lock.
    """
    return (flow_run.run_count or 1) > 1


def run_iterations(lineage: Lineage) -> Board:
    """The algorithm. Each line is a phase in its own process; what is built already is reused."""
    opponent, prompts = first_opponent(lineage)
    time_left.plan(lineage, opponent, prompts)
    reports: dict[int, Reports] = {0: evaluate(lineage, opponent, prompts)}
    gate.score_of(lineage.config, reports[0])  # fails early if the main metric is missing
    versions = {0: opponent}
    previous: GenerationBatch | None = None  # answers of iteration t - 1
    initial: GenerationBatch | None = None  # answers of iteration 0
    for t in range(lineage.config.iterations):
        answerers = answering_models(lineage.config, opponent, versions, reports)  # empty: the opponent alone
        generations = generate(lineage, t, opponent, prompts, answerers)  # y' ~ p_θt(.|x)
        pairs = build_pairs(lineage, t, prompts, generations, previous, initial)  # D_t ∪ D_{t-1}
        scores = score(lineage, t, opponent, pairs, versions[0])  # log p_θt of each pair
        training = train(lineage, t, opponent, pairs, scores)  # θ_{t+1}
        player = versions[t + 1] = lineage.player(t)
        reports[t + 1] = evaluate(lineage, player, prompts, reports[opponent.t])
        best = gate.best(lineage.config, reports, t)
        decision = decision_before(lineage, t) or gate.decide(
            lineage.config, candidate=(t + 1, reports[t + 1]), best=best
        )  # which version is the next opponent
        artifacts = IterationArtifacts(
            prompts=prompts, opponent=opponent, generations=generations, pairs=pairs, scores=scores, train=training,
            player=player, evaluations=reports[t + 1], gate=decision,
        )  # fmt: skip
        record = record_iteration(lineage, t, artifacts)
        publish_iteration(lineage, record)
        push(lineage)
        if decision.outcome == "stop":
            break
        opponent, previous, initial = versions[decision.next_opponent], generations, initial or generations
    compare_with_controls(lineage, prompts, reports[0])
    board = publish_leaderboard(lineage)
    push(lineage)
    return board


def first_opponent(lineage: Lineage) -> tuple[ModelVersion, PromptSet]:
    """θ_0 and the SFT data. Lineages share a θ_0 that is trained here."""
    if not lineage.config.trains_base:
        base = base_model(lineage)
        return base, prepare_prompts(lineage, base)
    with lock.locked(lineage.runs / SHARED, wait=True):
        untrained = base_model(lineage)
        prompts = prepare_prompts(lineage, untrained)
        train_sft(lineage, untrained, prompts)
        return phase_jobs.sft_model(lineage, untrained, prompts), prompts
