"""Start a lineage, or continue one, if its settings allow it."""

from pathlib import Path

from spin_core.config import metrics
from spin_core.config.base import resolved
from spin_core.config.run import RunConfig
from spin_core.errors import StaleArtifact
from spin_core.evaluation import suites
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import CONFIGURATION, Lineage
from spin_core.runtime import interpreter
from spin_core.store import files, identity
from spin_core.store.files import dump, load

FREE = ("iterations", "controls", "evaluate", "gate", "metrics", "nightly", "push")
"""Settings that may differ from the ones a lineage was started with: no version depends on them. What was scored under
others of `evaluate` is scored anew (`rescore`)."""


def start_lineage(runs: Path, name: str, config: RunConfig) -> Lineage:
    """Begin a lineage, or go on with the one of that name. Call it with the lineage's lock held.

    Raises `StaleArtifact`, naming the fields, if it was started with other settings that touch what is built: a
    schedule may change for iterations that have not begun. Raises `ConfigError` if an engine is not installed or suites
    do not go together.
    """
    if config.generate.engine == "vllm":
        interpreter.required_python(config.generate.vllm)
    suites.check(config)
    metrics.check(config.metrics)
    path = lineage_folder(runs, name) / CONFIGURATION
    lineage = Lineage(runs=runs, name=name, config=config)
    if path.exists():
        have = load(RunConfig, path, "config")
        begun = max(1, sum(1 for _ in lineage.root.glob("iter_*")))
        for t in range(begun):
            changed = [
                item
                for item in identity.differences(
                    identity.identity_of(resolved(have, t)), identity.identity_of(resolved(config, t))
                )
                if item[0].split(".")[0] not in FREE
            ]
            if changed:
                listed = "; ".join(
                    f"{field} = {identity.short(was)}, not {identity.short(now)}" for field, was, now in changed[:3]
                )
                raise StaleArtifact(
                    f"lineage {name} was started with {listed}: choose a new name with --lineage, or set the value back"
                )
    files.write_json(path, {"lineage": name, "config": dump(config)})
    return lineage
