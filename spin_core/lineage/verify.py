"""Check that a lineage on disk is what its manifests and records say."""

from spin_core.lineage.lineage import Lineage
from spin_core.store import artifacts
from spin_core.store.records import Artifact, IterationRecord

REWRITE = "start the lineage's spin run again, which writes it again from what is published"
"""How a lost record comes back."""


def verify(lineage: Lineage) -> tuple[list[str], int]:
    """Compare all published folders of a lineage with their manifests, and with the records that refer to them.

    A θ_0 that lineages share, which is outside the lineage's folder, is included.

    Returns:
        The problems, one line each, and the number of folders.
    """
    lost = [f"{path}: missing, though the iteration is finished: {REWRITE}" for path in lineage.lost_records()]
    referred = [(record.t, artifact) for record in lineage.records() for artifact in _artifacts_of(record)]
    folders = {*lineage.published(), *(artifact.path for _, artifact in referred)}
    problems_of = {folder: artifacts.verify(folder) for folder in folders}
    problems = lost + [problem for folder in sorted(folders) for problem in problems_of[folder]]
    for t, artifact in referred:
        if not problems_of[artifact.path]:
            published = artifacts.read_record(artifact.path, type(artifact))
            if published is not None and published.digest != artifact.digest:
                problems.append(f"{artifact.path}: not what the record of iteration {t} names")
    return problems, len(folders)


def _artifacts_of(record: IterationRecord) -> list[Artifact]:
    """All artifacts that the record of an iteration refers to."""
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
