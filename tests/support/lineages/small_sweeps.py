"""A small lineage whose models were measured over temperatures, with chosen numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spin_core.evaluation.frontier.axes import EXACT
from spin_core.lineage.lineage import Lineage
from spin_core.store.records import EvalReport
from tests.support.lineages.small_lineage import build_lineage, publish

TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7)
ITEMS = [str(number) for number in range(8)]
HARD = np.array([0.5, 1.5] * 4)
"""How much more or less of both distances an item has; 1 on average."""


def sweep(folder, diversity, quality, temperatures=TEMPERATURES, axes=EXACT):
    """A published sweep of a model with these means at each temperature."""
    means = dict(zip(axes, (diversity, quality), strict=True))
    rows = [
        (temperature, task, item, float(value))
        for task, mean_K in means.items()
        for temperature, mean in zip(temperatures, mean_K, strict=True)
        for item, value in zip(ITEMS, mean * HARD, strict=True)
    ]
    columns = dict(zip(("temperature", "task", "item", "value"), map(list, zip(*rows, strict=True)), strict=True))
    fields = {"model": folder.parent.parent.name, "suite": "frontier", "harness": "by hand", "scores": {}}
    return publish(folder, {"model": f"{diversity} {quality}"}, {"frontier.parquet": columns}, fields, EvalReport)


BASE = ((0.5, 0.4, 0.3, 0.2, 0.1), (0.01, 0.02, 0.03, 0.04, 0.05))
"""θ_0: each step of the temperature costs .01 of invalid mass and saves .1 of total variation."""


def build_swept_lineage(runs: Path, name: str = "tale", sets: Sequence[str] = (), shift: float = 0.0) -> Lineage:
    """Three versions and a control. At the temperature of use, .5, θ_1 is on θ_0's curve, and θ_2 below it.

    `shift` is added to θ_2's invalid mass.
    """
    lineage = build_lineage(runs, name, sets=sets)
    sweep(lineage.eval_folder(0) / "frontier", *BASE)
    # θ_1 is where θ_0 is at .6; θ_2 has .02 less invalid mass than that; the control has .01 more than θ_0.
    sweep(lineage.eval_folder(1) / "frontier", (0.4, 0.3, 0.2, 0.1, 0.1), (0.02, 0.03, 0.04, 0.05, 0.06))
    sweep(
        lineage.eval_folder(2) / "frontier", (0.4, 0.3, 0.2, 0.1, 0.1), np.array([0.0, 0.01, 0.02, 0.03, 0.04]) + shift
    )
    sweep(lineage.control("sft") / "eval" / "frontier", (0.5, 0.4, 0.3, 0.2, 0.1), (0.02, 0.03, 0.04, 0.05, 0.06))
    return lineage
