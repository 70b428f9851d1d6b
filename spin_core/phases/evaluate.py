"""Phase `evaluate`: answer and score the held-out prompts: `python -m spin_core.phases.evaluate JOB`."""

from pathlib import Path
from typing import Any

from spin_core.evaluation.self_play import score
from spin_core.evaluation.shared import shared_report
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.evaluation_jobs import EvaluateJob
from spin_core.store.records import EvalReport


def run(job: EvaluateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer and score the held-out prompts, or copy the report of another lineage on the same model.

    A version without an opponent, such as θ_0, may belong to several lineages, which share its report. What an earlier
    attempt left unfinished is done again.
    """
    if job.speed.scores is None or job.opponent is not None:
        return score(job, scratch, progress)
    return shared_report(job, job.speed.scores, "self-play", scratch, lambda folder: score(job, folder, progress))


if __name__ == "__main__":
    main(EvaluateJob, EvalReport, run)
