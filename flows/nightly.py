"""One more iteration of a lineage: what a schedule triggers every night."""

from prefect import flow

from flows.parameters import runs_folder
from flows.spin import continue_lineage
from spin_core import lineage as lineages
from spin_core.config import LineageName
from spin_core.recipes import RecipeName, resolve


@flow(name="nightly", flow_run_name="nightly-{lineage}", persist_result=False)
def nightly(lineage: LineageName, recipe: RecipeName = "demo", runs: str = "") -> None:
    """Add one iteration to the lineage's head; an iteration that was begun and not ended is ended instead.

    Args:
        lineage: The name of the chain of model versions.
        recipe: What to start the lineage with, if it does not exist yet.
        runs: The folder that holds lineages; SPIN_RUNS, or runs, if left out.
    """
    folder = runs_folder(runs)
    if (lineages.check_name(folder, lineage) / "lineage.json").exists():
        config = lineages.find(folder, lineage).one_more()
    else:
        config = resolve(recipe, iterations=1)
    continue_lineage(runs, lineage, config)
