"""What a form asks for: a lineage that goes on, or a new one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.parameters import AS_THE_LINEAGE
from spin_core.config.controls import ControlsConfig
from spin_core.config.resolve import resolve, suggestion
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.lineage.changes import with_settings
from spin_core.lineage.find import find_lineage, lineage_exists, lineage_names
from spin_core.lineage.lineage import Lineage


def requested(
    runs: Path, lineage: str, recipe: str, iterations: int | None, changes: Mapping[str, Any]
) -> tuple[str, RunConfig]:
    """The name and the configuration of the lineage to run.

    Args:
        runs: The folder that holds lineages.
        lineage: The lineage's name; if it is empty, the recipe's.
        recipe: The recipe of a new lineage, or `AS_THE_LINEAGE`.
        iterations: How many iterations the lineage has at the end; None leaves it to the lineage or the recipe.
        changes: Other settings that were filled in.

    Raises:
        ConfigError: The lineage is not named, does not exist and has no recipe, has another recipe, or was ended by
            its gate.
    """
    name = lineage or (recipe if recipe != AS_THE_LINEAGE else "")
    if not name:
        raise ConfigError("nothing to run: name a lineage to continue it, or choose a recipe to start one")
    existing = find_lineage(runs, name) if lineage_exists(runs, name) else None
    # As long as nothing is published, a lineage that failed at its start takes the settings of the next attempt.
    if existing and (recipe == AS_THE_LINEAGE or existing.published()):
        return name, _continued(existing, recipe, iterations, changes)
    if recipe == AS_THE_LINEAGE:
        raise unknown_lineage(runs, name)
    return name, resolve(recipe, overrides=changes, iterations=iterations)


def unknown_lineage(runs: Path, name: str) -> ConfigError:
    """The error of a form that names a lineage that does not exist, and no recipe to start it with."""
    hint = suggestion(name, lineage_names(runs))
    return ConfigError(f"there is no lineage {name!r}{hint} in {runs}: correct the name, or choose its recipe too")


def _continued(lineage: Lineage, recipe: str, iterations: int | None, changes: Mapping[str, Any]) -> RunConfig:
    """The lineage's own configuration with the changes. As for `spin next`, more iterations come without controls."""
    own = lineage.config
    if recipe not in (AS_THE_LINEAGE, own.recipe):
        raise ConfigError(
            f"lineage {lineage.name} was started with recipe {own.recipe}, not {recipe}: leave recipe as the lineage "
            "has it, or choose a new lineage name"
        )
    changed = with_settings(lineage, [changes] if changes else [])
    if iterations is None:
        return changed.config
    if iterations > len(lineage.records()) and (reason := changed.ended_by_gate()):
        raise ConfigError(
            f"the gate ended lineage {lineage.name} ({reason}): to continue anyway, set gate.rule to best in overrides"
        )
    update: dict[str, Any] = {"iterations": iterations}
    if iterations > own.iterations and "controls" not in changes:
        update["controls"] = ControlsConfig()
    return changed.config.model_copy(update=update)
