"""Start a lineage, or continue one whose settings allow it."""

from pathlib import Path

from spin_core.config.base import at_iteration
from spin_core.config.run import RunConfig
from spin_core.errors import StaleArtifact
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import CONFIGURATION, Lineage
from spin_core.store import identity
from spin_core.store.files import json_values, load, write_json

_MAY_CHANGE = ("iterations", "controls", "evaluate", "gate", "metrics", "nightly", "push")
"""Sections that may differ from those a lineage was started with, because no version depends on them.

What was scored with other settings of `evaluate` is scored again (`rescore`)."""


def start_lineage(runs: Path, name: str, config: RunConfig) -> Lineage:
    """Start a lineage, or continue the one of that name, and write its configuration.

    The caller holds the lineage's lock. `preflight.prepare.prepare_run` checks the configuration itself.

    Raises:
        ConfigError: The name is not allowed.
        StaleArtifact: The lineage was started with other settings that its versions depend on. A schedule may change
            for iterations that have not begun.
    """
    path = lineage_folder(runs, name) / CONFIGURATION
    lineage = Lineage(runs=runs, name=name, config=config)
    if path.exists():
        _check_unchanged(lineage, load(RunConfig, path, "config"))
    write_json(path, {"lineage": name, "config": json_values(config)})
    return lineage


def _check_unchanged(lineage: Lineage, before: RunConfig) -> None:
    """Raise `StaleArtifact` if a setting that a begun iteration depends on differs from `before`."""
    begun = max(1, sum(1 for _ in lineage.root.glob("iter_*")))
    for t in range(begun):
        # Identities leave out execution settings, which no result depends on.
        old, new = (identity.identity_of(at_iteration(config, t)) for config in (before, lineage.config))
        changed = [
            f"{field} = {identity.shorten(was)}, not {identity.shorten(now)}"
            for field, was, now in identity.differences(old, new)
            if field.split(".")[0] not in _MAY_CHANGE
        ]
        if changed:
            raise StaleArtifact(
                f"lineage {lineage.name} was started with {'; '.join(changed[:3])}: choose a new name with --lineage, "
                "or set the value back"
            )
