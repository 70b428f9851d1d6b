"""Writing an iteration's record: what went in, what came out, what it cost, and what made it."""

import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from spin_core.lineage import costs, rescore
from spin_core.lineage.lineage import Lineage
from spin_core.store import artifacts
from spin_core.store.records import (
    EvalReport,
    GateDecision,
    GenerationBatch,
    IterationRecord,
    ModelVersion,
    PairDataset,
    PromptSet,
    ScoredPairs,
    TrainRun,
)


def record_iteration(
    lineage: Lineage,
    t: int,
    *,
    prompts: PromptSet,
    opponent: ModelVersion,
    generations: GenerationBatch,
    pairs: PairDataset,
    scores: ScoredPairs,
    train: TrainRun,
    player: ModelVersion,
    evaluations: tuple[EvalReport, ...],
    gate: GateDecision,
) -> IterationRecord:
    """Assemble the record of iteration t from its parts and their manifests, and write it.

    An iteration that was played before keeps its record: it was made by the code and the settings of that time. Where
    it has been scored anew since, the record has the new reports and the settings that made them.
    """
    used = {
        phase: usage(artifact.path)
        for phase, artifact in [
            ("prompts", prompts),
            ("generate", generations),
            ("pairs", pairs),
            ("score", scores),
            ("train", train),
            *((f"evaluate {report.suite}", report) for report in evaluations),
        ]
        if artifact is not prompts or t == 0
    }
    record = IterationRecord(
        lineage=lineage.name,
        t=t,
        config=lineage.config,
        prompts=prompts,
        opponent=opponent,
        generations=generations,
        pairs=pairs,
        scores=scores,
        train=train,
        player=player,
        evaluations=evaluations,
        gate=gate,
        seconds={phase: use["seconds"] for phase, use in used.items()},
        peak_memory_mb={phase: use["peak_memory_mb"] for phase, use in used.items()},
        devices={phase: use["devices"] for phase, use in used.items() if "devices" in use},
        tokens=costs.tokens_of(generations, train, evaluations),
        environment={"spin": version(), **usage(train.path)["environment"]},
        scored_with={report.suite: rescore.settings_of(report.path) for report in evaluations},
    )
    have = lineage.record(t)
    if have is not None and have.train == train:
        as_played = {"config": have.config, "environment": have.environment}
        if have == record.model_copy(update=as_played):
            return have
        now = {"evaluate": lineage.config.evaluate, "gate": lineage.config.gate}
        record = record.model_copy(update={**as_played, "config": have.config.model_copy(update=now)})
    lineage.save_record(record)
    lineage.page(t).unlink(missing_ok=True)
    return record


def decided(lineage: Lineage, t: int) -> GateDecision | None:
    """The gate's decision that iteration t + 1 was begun on. None at the head: today's settings and scores decide."""
    record = lineage.record(t)
    return record.gate if record is not None and lineage.iteration(t + 1).exists() else None


def usage(folder: Path) -> dict[str, Any]:
    """Seconds, memory and versions that a manifest names."""
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None, f"{folder} is published, so it has a manifest"
    found: dict[str, Any] = manifest["usage"]
    return found


def version() -> str:
    """The package's version, with the commit it runs from where that is known."""
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    commit = f" ({git.stdout.strip()})" if git.returncode == 0 else ""
    return metadata.version("spin-loop") + commit
