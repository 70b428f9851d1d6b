"""Phase `base`: link θ_0, or create an untrained model: `python -m spin_core.phases.base JOB`."""

import shutil
from pathlib import Path
from typing import Any

from spin_core.errors import ModelError
from spin_core.models.base_model import create_model, link_model
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import BaseJob
from spin_core.store.records import ModelVersion


def run(job: BaseJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Link the configured model, or create one."""
    for leftover in scratch.iterdir():
        leftover.unlink() if not leftover.is_dir() else shutil.rmtree(leftover)
    if job.model.path:
        link_model(job, scratch, progress)
    else:
        if job.sft is None:
            raise ModelError("there is no model to start from: set model.path to a folder or a hub name")
        create_model(job, job.sft, scratch)
    return {"t": 0, "parent": None}


if __name__ == "__main__":
    main(BaseJob, ModelVersion, run)
