"""Phase `evaluate`: answer and score the held-out prompts: `python -m spin_core.phases.evaluate JOB`."""

import shutil
from pathlib import Path
from typing import Any

from spin_core.evaluation.self_play import score
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store import artifacts, lock
from spin_core.store.evaluation_jobs import EvaluateJob
from spin_core.store.identity import MANIFEST, digest_of, identity_of
from spin_core.store.records import EvalReport


def run(job: EvaluateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer and score the held-out prompts, or copy the report of another lineage on the same model.

    A version without an opponent, such as θ_0, may belong to several lineages, which share its report. What an earlier
    attempt left unfinished is done again.
    """
    if job.speed.scores is None or job.opponent is not None:
        return score(job, scratch, progress)
    identity = identity_of(job)
    entry = job.speed.scores / digest_of(identity)[:16]
    with lock.locked(entry, wait=True):
        report = artifacts.reusable(entry / "self-play", identity, EvalReport)
        if report is None:
            work = entry / ".self-play.partial"
            work.mkdir(exist_ok=True)
            fields = score(job, work, progress)
            report = artifacts.publish(work, entry / "self-play", identity, fields, EvalReport)
        for path in report.path.iterdir():
            if path.name != MANIFEST:
                shutil.copy2(path, scratch)
    return report.model_dump(exclude={"path", "digest", "kind"})


if __name__ == "__main__":
    main(EvaluateJob, EvalReport, run)
