"""Lineages by name: the folder of one, one that exists, and the names of all."""

import re
from pathlib import Path

from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.lineage.lineage import CONFIGURATION, Lineage
from spin_core.store import artifacts
from spin_core.store.files import load
from spin_core.store.records import ModelVersion

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def is_name(name: str) -> bool:
    """Whether a lineage may have this name."""
    return _NAME.fullmatch(name) is not None


def lineage_folder(runs: Path, name: str) -> Path:
    """The folder of the lineage of that name, whether it exists or not.

    Raises:
        ConfigError: The name is not allowed.
    """
    if not is_name(name):
        raise ConfigError(f"{name!r} cannot name a lineage: use lower-case letters, digits and -, at most 63")
    return runs / name


def lineage_exists(runs: Path, name: str) -> bool:
    """Whether a lineage of that name was started. Raises `ConfigError` if the name is not allowed."""
    return (lineage_folder(runs, name) / CONFIGURATION).exists()


def find_lineage(runs: Path, name: str) -> Lineage:
    """The lineage of that name.

    Raises:
        ConfigError: There is none, or the name is not allowed.
    """
    path = lineage_folder(runs, name) / CONFIGURATION
    if not path.exists():
        existing = ", ".join(lineage_names(runs)) or "none yet"
        raise ConfigError(f"there is no lineage {name!r} in {runs} (there: {existing}): start it with spin run")
    return Lineage(runs=runs, name=name, config=load(RunConfig, path, "config"))


def find_version(lineage: Lineage, t: int | None = None) -> ModelVersion:
    """θ_t; without a number the version that the gate has chosen.

    Raises:
        ConfigError: The lineage has no such version.
    """
    records = lineage.records()
    if t is None:
        t = records[-1].gate.next_opponent if records else 0
    if not 0 <= t <= len(records):
        raise ConfigError(f"lineage {lineage.name} has no θ_{t}: choose from 0 to {len(records)}")
    if t > 0:
        return lineage.player(t - 1)
    base = records[0].opponent if records else artifacts.read_record(lineage.root / "base" / "model", ModelVersion)
    if base is None:
        raise ConfigError(f"lineage {lineage.name} has no version yet: continue it with spin run")
    return base


def lineage_names(runs: Path) -> list[str]:
    """The names of all lineages in a folder, sorted."""
    return sorted(path.parent.name for path in runs.glob(f"*/{CONFIGURATION}"))
