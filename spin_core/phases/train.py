"""Phase `train`: train a model: `python -m spin_core.phases.train JOB`."""

import shutil
from pathlib import Path
from typing import Any

from spin_core.data.batches import DataOrder
from spin_core.runtime import ranks
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store import artifacts
from spin_core.store.identity import identity_of
from spin_core.store.jobs import TrainJob
from spin_core.store.records import ModelVersion, TrainRun
from spin_core.training import held_out
from spin_core.training.budget import steps_planned
from spin_core.training.checkpoint import CHECKPOINTS
from spin_core.training.loop import is_complete, publish_weights, summary, train
from spin_core.training.train_data import read_data


def run(job: TrainJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Train, publish the weights, and leave `metrics.jsonl`, and `held_out.jsonl` if pairs are held out.

    Weights are published before the metrics. If a kill falls between the two, complete metrics beside weights that
    this very job published say that nothing is left to train.
    """
    held_out.check_settings(job.config)
    identity = identity_of(job)
    data = read_data(job)
    items, held = held_out.split(data, job.config.held_out, job.held_out_seed)
    order = DataOrder(items, job.config.batch_size, job.seed)
    total = steps_planned(job, data.sequences, data.sides, order)
    us = ranks.here()
    version = artifacts.reusable(job.weights, identity, ModelVersion) if us.first else None
    if not us.any(version is not None and is_complete(job, scratch, total)):
        stepper, adapter = train(job, data, order, held, total, scratch, progress)
        version = publish_weights(job, identity, stepper, adapter, us)
    if version is None:  # the first rank has it
        return {}
    shutil.rmtree(scratch / CHECKPOINTS, ignore_errors=True)
    return summary(job, version, scratch)


if __name__ == "__main__":
    main(TrainJob, TrainRun, run)
