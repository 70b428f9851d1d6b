"""Write the record of an iteration: what it has read and made, what that cost, and which versions made it."""

from pathlib import Path
from typing import Any

from spin_core.errors import DamagedArtifact
from spin_core.lineage import costs, rescore
from spin_core.lineage.lineage import Lineage
from spin_core.runtime.version import spin_version
from spin_core.store import artifacts
from spin_core.store.identity import MANIFEST
from spin_core.store.records import Artifact, GateDecision, IterationArtifacts, IterationRecord


def record_iteration(lineage: Lineage, t: int, made: IterationArtifacts) -> IterationRecord:
    """Write the record of iteration t: its artifacts, what they cost, and the versions and settings that made them.

    An iteration that was finished before keeps the settings and the environment of its record, which are those of that
    time. Only if it has been scored again since, its record gets the new reports and the settings that made them.
    """
    record = _new_record(lineage, t, made)
    before = lineage.record(t)
    if before is not None and before.train == made.train:
        as_made = {"config": before.config, "environment": before.environment}
        if before == record.model_copy(update=as_made):
            return before
        scoring = {"evaluate": lineage.config.evaluate, "gate": lineage.config.gate}
        record = record.model_copy(update={**as_made, "config": before.config.model_copy(update=scoring)})
    lineage.save_record(record)
    lineage.page(t).unlink(missing_ok=True)  # written again from the new record
    return record


def _new_record(lineage: Lineage, t: int, made: IterationArtifacts) -> IterationRecord:
    """The record of an iteration that was made now."""
    phases: dict[str, Artifact] = {
        # The data are prepared once, in iteration 0.
        **({"prompts": made.prompts} if t == 0 else {}),
        "generate": made.generations,
        "pairs": made.pairs,
        "score": made.scores,
        "train": made.train,
        **{f"evaluate {report.suite}": report for report in made.evaluations},
    }
    used = {phase: _usage(artifact.path) for phase, artifact in phases.items()}
    return IterationRecord(
        lineage=lineage.name,
        t=t,
        config=lineage.config,
        **dict(made),
        seconds={phase: usage["seconds"] for phase, usage in used.items()},
        peak_memory_mb={phase: usage["peak_memory_mb"] for phase, usage in used.items()},
        devices={phase: usage["devices"] for phase, usage in used.items() if "devices" in usage},
        tokens=costs.tokens_of(made.generations, made.train, made.evaluations),
        environment={"spin": spin_version(), **used["train"]["environment"]},
        scored_with={report.suite: rescore.settings_of(report.path) for report in made.evaluations},
    )


def decision_before(lineage: Lineage, t: int) -> GateDecision | None:
    """The gate's decision after iteration t, if iteration t + 1 has already begun with it; None otherwise.

    Without one, the gate decides by the present settings and scores.
    """
    record = lineage.record(t)
    return record.gate if record is not None and lineage.iteration(t + 1).exists() else None


def _usage(folder: Path) -> dict[str, Any]:
    """Seconds, memory and versions from the manifest of a published folder."""
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None, f"{folder} is published, so it has a manifest"
    usage: dict[str, Any] = manifest["usage"]
    if not {"seconds", "peak_memory_mb", "environment"} <= usage.keys():
        raise DamagedArtifact(f"{folder / MANIFEST} does not say what it cost: remove {folder} to build it again")
    return usage
