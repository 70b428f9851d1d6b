"""Phase `train`: train a model and publish it: `python -m spin_core.phases.train JOB`."""

import shutil
from pathlib import Path
from typing import Any

from spin_core.data.batches import DataOrder
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import DamagedArtifact
from spin_core.models.adapters import Adapter
from spin_core.preflight import fit
from spin_core.runtime import ranks
from spin_core.runtime.phase import main, scratch_of
from spin_core.runtime.progress import Progress
from spin_core.runtime.ranks import Ranks
from spin_core.store import artifacts
from spin_core.store.identity import identity_of
from spin_core.store.jobs import TrainJob
from spin_core.store.records import ModelVersion, TrainRun
from spin_core.store.training_log import HELD_OUT, METRICS, TIMING, read_rows
from spin_core.training import held_out, lora
from spin_core.training.budget import steps_planned
from spin_core.training.checkpoint import CHECKPOINTS, micro_batches_of, ranks_of
from spin_core.training.loop import train
from spin_core.training.monitors import ending, events_of
from spin_core.training.objective import objective_of
from spin_core.training.stepper import Stepper
from spin_core.training.train_data import read_data

TOKENS = "tokens"
"""The folder in `scratch` with the token ids, while the training lasts."""


def run(job: TrainJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Train, publish the weights, and leave `metrics.jsonl`, and `held_out.jsonl` if pairs are held out.

    The weights are published before the metrics. If a kill comes in between, the next attempt finds weights of this
    very job next to metrics that are complete, and has nothing to train.
    """
    held_out.check_settings(job.config)
    world = ranks.current()
    data = read_data(job, scratch / TOKENS, world)
    items, held = held_out.split(data, job.config.held_out, job.held_out_seed)
    order = DataOrder(items, job.config.batch_size, job.seed)
    total = steps_planned(job, data.tokens_of_items(), order)
    version = artifacts.reusable(job.weights, identity_of(job), ModelVersion) if world.first else None
    if not world.any(version is not None and is_complete(job, scratch, total)):
        limit = fit.open_training_limit(job, data.tokens.lengths_NC, scratch, world)
        with limit.attempt(world):
            stepper, adapter = train(job, data, order, held, total, limit, scratch, progress)
            version = publish_weights(job, stepper, adapter, world)
    if version is None:  # only the first rank has it
        return {}
    for folder in (CHECKPOINTS, TOKENS):
        shutil.rmtree(scratch / folder, ignore_errors=True)
    return summary(job, version, scratch)


def is_complete(job: TrainJob, scratch: Path, total: int) -> bool:
    """Whether the metrics go to the last step, or to an event that ended the training."""
    try:
        rows = read_rows(scratch / METRICS)
    except DamagedArtifact:  # the training goes back to a checkpoint from before the damage
        return False
    events = events_of(rows, job.config.monitors, objective_of(job.config, job.t))
    return len(rows) == total or ending(events) is not None


def publish_weights(job: TrainJob, stepper: Stepper, adapter: Adapter | None, world: Ranks) -> ModelVersion | None:
    """Publish the trained model with its tokenizer as version t + 1. Returns None on all ranks but the first."""
    scratch = scratch_of(job.weights)
    if world.first:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    if adapter is None:
        stepper.save(scratch, load_tokenizer(job.start.path, job.model))
    elif world.first:
        assert job.config.lora is not None
        lora.publish(scratch, adapter=adapter, start=job.start.path, t=job.t, lora=job.config.lora, model=job.model)
    if not world.first:
        return None
    fields = {"t": job.t + 1, "parent": job.start.digest}
    return artifacts.publish(scratch, job.weights, identity_of(job), fields, ModelVersion)


def summary(job: TrainJob, version: ModelVersion, scratch: Path) -> dict[str, Any]:
    """The fields of the record, computed from the training's files alone, so that a resumed training has the same."""
    rows, held_rows = read_rows(scratch / METRICS), read_rows(scratch / HELD_OUT)
    timings = read_rows(scratch / TIMING)
    events = events_of(rows, job.config.monitors, objective_of(job.config, job.t))
    published = held_out.published_step(job.config, len(rows), held_rows, events)
    held_rows = [row for row in held_rows if row["step"] <= published]
    return {
        "t": job.t,
        "model": version.digest,
        "steps": len(rows),
        "ranks": ranks_of(timings),
        "micro_batch_tokens": micro_batches_of(timings),
        "published": published,
        "first_loss": rows[0]["loss"],
        "metrics": {name: value for name, value in rows[published - 1].items() if name not in ("step", "epoch")},
        "held_out": held_rows[-1] if held_rows else {},
        "events": events,
    }


if __name__ == "__main__":
    main(TrainJob, TrainRun, run)
