"""Whether a lineage on disk is what its manifests and records say."""

from spin_core.lineage.lineage import Lineage
from spin_core.store import artifacts
from spin_core.store.records import Artifact, IterationRecord


def verify(lineage: Lineage) -> tuple[list[str], int]:
    """What is wrong with a lineage's published folders and records, one line each, and how many folders there are.

    A θ_0 that lineages share lies elsewhere, and is looked at too.
    """
    records = lineage.records()
    named = [(record.t, artifact) for record in records for artifact in artifacts_of(record)]
    found = {folder: artifacts.verify(folder) for folder in {*lineage.published(), *(one.path for _, one in named)}}
    problems = [problem for folder in sorted(found) for problem in found[folder]]
    for t, artifact in named:
        if not found[artifact.path]:
            have = artifacts.read_record(artifact.path, type(artifact))
            if have is not None and have.digest != artifact.digest:
                problems.append(f"{artifact.path}: not what the record of iteration {t} names")
    return problems, len(found)


def artifacts_of(record: IterationRecord) -> list[Artifact]:
    """Everything that an iteration's record names."""
    return [
        record.prompts,
        record.opponent,
        record.generations,
        record.pairs,
        record.scores,
        record.train,
        record.player,
        *record.evaluations,
    ]
