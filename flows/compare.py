"""The flow `compare`: SPIN next to continued fine-tuning, DPO, longer and smaller trainings, over several seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import Field

from flows.labels import add_tags, artifact_line, completed
from flows.parameters import Iterations, OptionalName, Overrides
from flows.permissions import permitted_values, runs_folder
from flows.server.local import end_run_with_worker
from flows.server.temporary import end_with_temporary_server
from flows.server.watch import label_with_process
from flows.spin import run_locked, started_again
from flows.turn import turn
from spin_core.comparison import compare as comparisons
from spin_core.comparison.compare import MOST_SEEDS, Table
from spin_core.config.resolve import RecipeName, resolve
from spin_core.lineage.controls import Method
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import Lineage
from spin_core.store import lock
from tasks.compare import publish_comparison

Seeds = Annotated[int, Field(ge=1, le=MOST_SEEDS)]


@flow(name="compare", flow_run_name="compare-{recipe}", persist_result=False)
def compare(
    recipe: RecipeName = "demo",
    name: OptionalName = "",
    seeds: Seeds = 3,
    iterations: Iterations = 0,
    methods: tuple[Method, ...] = (),
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    runs: str = "",
) -> None:
    """Run a recipe over several seeds, train what it is compared with, and put all into one table.

    Args:
        recipe: A named, complete configuration.
        name: The comparison's name, in lower-case letters, digits and dashes; by default compare-<recipe>. Its
            lineages are <name>-seed-1 and so on.
        seeds: How many runs there are, each from the same model on the same data.
        iterations: How many iterations each run has. 0 takes the recipe's number.
        methods: What SPIN is compared with; by default everything, but DPO only with preference data.
        overrides: Any other setting. What is left empty stays as the recipe has it.
        runs: The folder that holds lineages. If empty: that of `spin up`; elsewhere SPIN_RUNS, or runs.
    """
    end_run_with_worker()
    name = name or f"compare-{recipe}"
    config = resolve(recipe, overrides=permitted_values(overrides), iterations=iterations or None)
    folder, warn = runs_folder(runs), get_run_logger().warning
    with turn(lineage_folder(folder, name)):
        lineages = comparisons.prepare_comparison(folder, name, config, seeds, methods, warn=warn, wait=started_again())
        _run_seeds(folder, name, lineages, comparisons.missing_methods(config, methods))
    return completed(artifact_line("comparison", name), None)


@flow(name="compare", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def compare_local(runs: Path, name: str, lineages: Sequence[Lineage], left_out: dict[str, str]) -> Table:
    """Compare lineages that are prepared already: what the command line calls."""
    end_with_temporary_server()
    label_with_process()
    return completed(artifact_line("comparison", name), _run_seeds(runs, name, lineages, left_out))


def _run_seeds(runs: Path, name: str, lineages: Sequence[Lineage], left_out: dict[str, str]) -> Table:
    """Run each seed with its controls, as an ordinary lineage; then write the table."""
    add_tags(recipe=lineages[0].config.recipe, comparison=name)
    with lock.locked(lineage_folder(runs, name), wait=started_again()):
        for lineage in lineages:
            _run_seed(lineage)
        table = comparisons.table(name, lineages, left_out)
        publish_comparison(runs, table, lineages[0])
    return table


@flow(name="spin", flow_run_name="{lineage.name}", persist_result=False, validate_parameters=False)
def _run_seed(lineage: Lineage) -> None:
    """Run one seed."""
    label_with_process()
    add_tags(recipe=lineage.config.recipe, lineage=lineage.name)
    run_locked(lineage)
    return completed(artifact_line("leaderboard", lineage.name), None)
