"""Phase `frontier`: measure a model at several temperatures: `python -m spin_core.phases.frontier JOB`."""

from pathlib import Path
from typing import Any

from spin_core.evaluation.frontier.sweep import measure
from spin_core.evaluation.shared import shared_report
from spin_core.evaluation.suites import FRONTIER
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.evaluation_jobs import FrontierJob
from spin_core.store.records import EvalReport


def run(job: FrontierJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Measure the model, or copy the report of another lineage on it."""
    if job.speed.scores is None:
        return measure(job, scratch, progress)
    return shared_report(job, job.speed.scores, FRONTIER, scratch, lambda folder: measure(job, folder, progress))


if __name__ == "__main__":
    main(FrontierJob, EvalReport, run)
