"""What runs of deployments are called, and which lineage each is for.

A flow names its run when it starts. Until then Prefect calls it by two random words, such as `practical-pika`.
"""

from collections.abc import Mapping
from typing import Any

from spin_core.config.recipes import RECIPES

_SUBJECTS = {"nightly": "lineage", "compare": "recipe", "evaluate": "target"}
"""The parameter after which a flow names its runs, by the flow's name, which is also a tag of its deployment."""


def spin_name(recipe: str, lineage: str) -> str:
    """`demo-mylineage`; without a recipe `mylineage`, and `demo` for the lineage that has the recipe's name."""
    names = (recipe if recipe in RECIPES else "", lineage)
    return "-".join(dict.fromkeys(name for name in names if name)) or "spin"


def shown_name(run: Mapping[str, Any]) -> str:
    """The name of a run of the server; for one that has not started, the name that its flow will give it."""
    parameters, flow = run["parameters"], _flow(run)
    if run["run_count"]:
        return str(run["name"])
    if flow == "spin":
        return spin_name(parameters.get("recipe") or "", parameters.get("lineage") or "")
    subject = parameters.get(_SUBJECTS[flow])
    return f"{flow}-{subject}" if subject else str(run["name"])


def lineage_of(run: Mapping[str, Any]) -> str:
    """The lineage, or the comparison, that a run of the server computes; empty if its parameters do not say it."""
    parameters, flow = run["parameters"], _flow(run)
    recipe = parameters.get("recipe") or ""
    if flow == "compare":
        return str(parameters.get("name") or f"compare-{recipe}")
    lineage = parameters.get("lineage") or (parameters.get("target") if flow == "evaluate" else "")
    return str(lineage or (recipe if recipe in RECIPES else ""))


def _flow(run: Mapping[str, Any]) -> str:
    """The name of a run's flow."""
    return next((flow for flow in _SUBJECTS if flow in run["tags"]), "spin")
