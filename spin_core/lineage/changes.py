"""Other settings for a lineage that exists: a user's changes, and one more iteration."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spin_core.config.controls import ControlsConfig
from spin_core.config.resolve import build_config, merge
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.lineage.lineage import Lineage
from spin_core.store.files import json_values


def with_settings(lineage: Lineage, changes: Sequence[Mapping[str, Any]]) -> Lineage:
    """The lineage with other settings. Nothing is written.

    Args:
        lineage: The lineage as it is.
        changes: Nested settings, as in a configuration file. Each is merged over the ones before it.

    Raises:
        ConfigError: A setting does not exist, or cannot have that value.
    """
    if not changes:
        return lineage
    values = json_values(lineage.config)
    for change in changes:
        values = merge(values, change)
    return replace(lineage, config=build_config(values))


def one_more_iteration(lineage: Lineage) -> RunConfig:
    """The configuration for one iteration after the last finished one, without controls.

    Raises:
        ConfigError: The gate has stopped the run.
    """
    records = lineage.records()
    if reason := lineage.ended_by_gate():
        raise ConfigError(
            f"the gate ended lineage {lineage.name} ({reason}): to continue anyway, use spin run "
            f"{lineage.config.recipe} --lineage {lineage.name} --iterations {len(records) + 1} --set gate.rule=best"
        )
    return lineage.config.model_copy(update={"iterations": len(records) + 1, "controls": ControlsConfig()})
