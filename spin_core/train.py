"""The player learns to tell real responses from its opponent's: `python -m spin_core.train job.json`.

Shapes: B items of a batch (pairs; for loss `sft` responses), P responses to each item's prompt, b items of a
micro-batch.

The model stays in evaluation mode, since dropout would make the player another model than the opponent that was
scored: the margins would begin as noise, and the first loss would not be log 2.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from spin_core import attention, ranks, store
from spin_core.batches import DataOrder
from spin_core.checkpoint import CHECKPOINTS, METRICS, TIMING, Journal, read_rows
from spin_core.config import SpeedConfig, TrainConfig, at
from spin_core.errors import STOPPED, ConfigError, Stopped
from spin_core.jobs import TrainJob
from spin_core.logps import CHUNK_LOGITS, ResponseLogps
from spin_core.models import load_model, load_tokenizer
from spin_core.monitors import Monitors, check_finite, check_first_loss
from spin_core.objective import Objective, objective_of
from spin_core.optim import SingleDevice, learning_rate
from spin_core.phase import Progress, main
from spin_core.ranks import Ranks
from spin_core.records import ModelVersion, TrainRun
from spin_core.stepper import Stepper
from spin_core.train_data import Batch, TrainData, ahead, batch_of, read_data

log = logging.getLogger("spin_core")


def run(job: TrainJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Train, publish the weights, and leave `metrics.jsonl`.

    Weights are published before the metrics. If a kill falls between the two, complete metrics beside weights that
    this very job published say that nothing is left to train.
    """
    asked = job.model_dump(mode="json")
    data = read_data(job)
    order = DataOrder(data.items, job.config.batch_size, job.seed)
    total = job.steps or at(job.config.epochs, max(job.t, 0)) * order.steps_in_epoch
    version = store.reusable(job.weights, asked, ModelVersion)
    if version is None or len(read_rows(scratch / METRICS)) != total:
        stepper = train(job, data, order, total, scratch, progress)
        version = publish_weights(job, asked, stepper)
    shutil.rmtree(scratch / CHECKPOINTS, ignore_errors=True)
    return summary(job, version, read_rows(scratch / METRICS))


def summary(job: TrainJob, version: ModelVersion, rows: list[dict[str, float]]) -> dict[str, Any]:
    """The record's fields, all of them from the metrics, so that a resumed run has the same."""
    monitors = Monitors(at(job.config.beta, max(job.t, 0)))
    return {
        "t": job.t,
        "model": version.digest,
        "steps": len(rows),
        "first_loss": rows[0]["loss"],
        "metrics": {name: value for name, value in rows[-1].items() if name not in ("step", "epoch")},
        "events": [event for row in rows for event in monitors.see(row)],
    }


def train(job: TrainJob, data: TrainData, order: DataOrder, total: int, scratch: Path, progress: Progress) -> Stepper:
    """The loop: from the last checkpoint, or from the start, to the last step."""
    config, t, us = job.config, max(job.t, 0), ranks.here()
    objective, peak = objective_of(config, job.t), at(config.learning_rate, t)
    torch.manual_seed(job.seed)
    network = network_of(load_model(job.start.path, job.model), config.speed)
    prepare(network.model, config)
    stepper: Stepper = SingleDevice(network, config)
    opponent = None if config.speed.cached_scores or data.reference_PB is None else opponent_of(job)
    monitors = Monitors(objective.beta)
    with Journal(scratch, config.keep_checkpoints) as journal:
        done, saved = journal.resume()
        if saved:
            stepper.load(saved)
        for row in read_rows(scratch / METRICS):
            monitors.see(row)
        log.info("%d items, step %d to %d, %d items a step", data.items, done, total, config.batch_size)
        progress.start(total, "step")
        for step, batch in enumerate(batches(data, order, us, config, network.packed, done, total), done):
            started = time.monotonic()
            measured = forward_backward(batch, objective, stepper, us, network.model.device, opponent)
            rate = learning_rate(step, total, peak, config)
            # One transfer a step: each .item() would make the device wait.
            values = torch.stack([*measured.values(), stepper.step(rate)]).tolist()
            row = {
                "step": step + 1,
                "epoch": round((step + 1) / order.steps_in_epoch, 6),
                **dict(zip([*measured, "grad_norm"], values, strict=True)),
                "learning_rate": rate,
            }
            check_finite(row)
            if step == 0 and objective.first_loss is not None:
                check_first_loss(row["loss"], objective.first_loss, config, objective.beta, job.model.dtype)
            journal.write(METRICS, row)
            journal.write(TIMING, {"step": step + 1, "seconds": time.monotonic() - started, "tokens": batch.tokens})
            for event in monitors.see(row):
                log.warning("%s", event)
            stopping = us.any(progress.stopping)
            if step + 1 < total and (stopping or (step + 1) % config.save_every == 0):
                journal.save(step + 1, stepper.tensors())
            progress.show(step + 1, **{name: row[name] for name in measured})
            if stopping:
                raise Stopped(STOPPED)
    return stepper


def batches(
    data: TrainData, order: DataOrder, us: Ranks, config: TrainConfig, packed: bool, first: int, last: int
) -> Iterator[Batch]:
    """What each step trains on, laid out while the one before it computes."""
    speed = config.speed

    def make(step: int) -> Batch:
        return batch_of(
            data, order.batch(step), us, config.micro_batch_tokens, packed=packed, prefix_sharing=speed.prefix_sharing
        )

    return ahead(make, first, last) if speed.prefetch else (make(step) for step in range(first, last))


def forward_backward(
    batch: Batch,
    objective: Objective,
    stepper: Stepper,
    us: Ranks,
    device: torch.device,
    opponent: ResponseLogps | None = None,
) -> dict[str, Tensor]:
    """Leave the gradient of the batch's loss with the stepper; returns the batch's metrics as float32 scalars.

    All responses to a prompt are in one forward pass, since the loss joins them. However the batch is split, each
    micro-batch adds its share of the same sum. With an `opponent`, its log-probabilities are computed here and now.
    """
    tokens_PB = torch.from_numpy(batch.tokens_PB).to(device)
    player_PB = torch.zeros(tokens_PB.shape, dtype=torch.float32, device=device)
    reference_PB = None if batch.reference_PB is None else batch.reference_PB.to(device)
    if reference_PB is not None and opponent is not None:
        reference_PB = torch.zeros_like(reference_PB)
    denominator = objective.denominator(batch.tokens_PB)
    for part in batch.parts:
        rows, chosen_b = part.rows.to(device), part.chosen_b.to(device)
        if opponent is not None and reference_PB is not None and not part.idle:
            with torch.no_grad():
                theirs_Pb = opponent(rows).view(len(tokens_PB), -1)
                reference_PB[:, chosen_b] = theirs_Pb[: len(reference_PB)]
        part_Pb = stepper.logps(rows).view(len(tokens_PB), -1)
        reference_Pb = None if reference_PB is None else reference_PB[:, chosen_b]
        losses_b = objective.losses(part_Pb, reference_Pb, tokens_PB[:, chosen_b])
        stepper.backward(losses_b.sum() * (0 if part.idle else 1 / denominator), last=part is batch.parts[-1])
        if not part.idle:
            player_PB[:, chosen_b] = part_Pb.detach()
    us.sum(player_PB)
    if opponent is not None and reference_PB is not None:
        us.sum(reference_PB)
    return {name: value.float() for name, value in objective.metrics(player_PB, reference_PB, tokens_PB).items()}


def network_of(model: PreTrainedModel, speed: SpeedConfig) -> ResponseLogps:
    """The model as it scores responses, with the savings that the configuration leaves on."""
    if speed.attention == "flex" and model.device.type != "cuda":
        raise ConfigError("train.speed.attention flex trains on a GPU alone: set it to sdpa")
    kernel = attention.FLEX if speed.attention == "flex" else attention.PACKED
    chunk = CHUNK_LOGITS if speed.response_logits else None
    return ResponseLogps(model, chunk_logits=chunk, pack=kernel if speed.packing else None)


def opponent_of(job: TrainJob) -> ResponseLogps:
    """θ_t itself, for those who would rather score it at every step."""
    return network_of(load_model(job.start.path, job.model), job.config.speed).requires_grad_(False)


def prepare(model: PreTrainedModel, config: TrainConfig) -> None:
    """Make the model train as configured: in evaluation mode, its layers compiled or recomputed if asked for."""
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if config.speed.compile:
        for layer in layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)
    if config.gradient_checkpointing:
        if not layers:
            raise ConfigError(
                f"{type(model).__name__} cannot recompute activations: set train.gradient_checkpointing to false"
            )
        for layer in layers:
            # Not the model's own switch, since that one works in training mode alone, where dropout is on.
            layer.forward = partial(torch_checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def publish_weights(job: TrainJob, asked: dict[str, Any], stepper: Stepper) -> ModelVersion:
    """Publish the trained model with its tokenizer as version t + 1."""
    scratch = job.weights.with_name(f".{job.weights.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    stepper.save(scratch, load_tokenizer(job.start.path, job.model))
    fields = {"t": job.t + 1, "parent": job.start.digest}
    return store.publish(scratch, job.weights, asked, fields, ModelVersion)


if __name__ == "__main__":
    main(TrainJob, TrainRun, run)
