"""Reports that lineages with the same θ_0 share: by the identity of the job, below the runs folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spin_core.store import artifacts, lock
from spin_core.store.evaluation_jobs import SuiteJob
from spin_core.store.identity import MANIFEST, digest_of, identity_of
from spin_core.store.records import EvalReport


def shared_report(
    job: SuiteJob, scores: Path, name: str, scratch: Path, score: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Copy the report of another lineage on the same model, or make it first. What an earlier attempt left is finished.

    Args:
        job: What is scored, and how.
        scores: The folder of shared reports.
        name: The name of the suite.
        scratch: The folder to write the report's files into.
        score: Writes the files into a folder and returns the fields of the report.

    Returns:
        The fields of the report.
    """
    identity = identity_of(job)
    entry = scores / digest_of(identity)[:16]
    with lock.locked(entry, wait=True):
        report = artifacts.reusable(entry / name, identity, EvalReport)
        if report is None:
            work = entry / f".{name}.partial"
            work.mkdir(exist_ok=True)
            report = artifacts.publish(work, entry / name, identity, score(work), EvalReport)
        for path in report.path.iterdir():
            if path.name != MANIFEST:
                shutil.copy2(path, scratch)
    return report.model_dump(exclude={"path", "digest", "kind"})
