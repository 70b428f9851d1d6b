"""The player learns to tell real responses from its opponent's: `python -m spin_core.phases.train job.json`.

Shapes: B items of a batch (pairs; for loss `sft` responses), P responses to each item's prompt, b items of a
micro-batch.

The model stays in evaluation mode, since dropout would make the player another model than the opponent that was
scored: the margins would begin as noise, and the first loss would not be log 2. An adapter's dropout does no such
harm, since an adapter begins as nothing.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from spin_core.config.base import at
from spin_core.config.train import TrainConfig
from spin_core.data.batches import DataOrder
from spin_core.data.sequences import Ints
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import STOPPED, ConfigError, Stopped, TrainingDiverged
from spin_core.models import adapters
from spin_core.models.loading import load_model
from spin_core.models.logps import ResponseLogps, network_of
from spin_core.models.packing import Rows
from spin_core.models.vocabulary_loss import ItemLosses
from spin_core.runtime import ranks
from spin_core.runtime.phase import scratch_of
from spin_core.runtime.progress import Progress
from spin_core.runtime.ranks import Ranks
from spin_core.store import artifacts
from spin_core.store.jobs import TrainJob
from spin_core.store.records import Event, ModelVersion
from spin_core.store.training_log import HELD_OUT, METRICS, TIMING, read_rows
from spin_core.training import held_out, lora
from spin_core.training.checkpoint import Journal, ranks_of
from spin_core.training.monitors import Monitors, check_first_loss, ending, events_of
from spin_core.training.objective import Objective, objective_of
from spin_core.training.optim import SingleDevice, learning_rate
from spin_core.training.stepper import Stepper
from spin_core.training.train_data import Batch, TrainData, ahead, batch_of
from spin_core.training.zero import Zero

log = logging.getLogger("spin_core")

APART = "apart"
"""How far player and opponent are apart (`Objective.apart`), which is looked at before the first step alone."""


def is_complete(job: TrainJob, scratch: Path, total: int) -> bool:
    """Whether the metrics go to the last step, or to an event that ended the training."""
    rows = read_rows(scratch / METRICS)
    events = events_of(rows, job.config.monitors, objective_of(job.config, job.t))
    return len(rows) == total or ending(events) is not None


def summary(job: TrainJob, version: ModelVersion, scratch: Path) -> dict[str, Any]:
    """The record's fields, all of them from what was measured, so that a resumed run has the same."""
    rows, held_rows = read_rows(scratch / METRICS), read_rows(scratch / HELD_OUT)
    events = events_of(rows, job.config.monitors, objective_of(job.config, job.t))
    published = held_out.published_step(job.config, len(rows), held_rows, events)
    measured = [row for row in held_rows if row["step"] <= published]
    return {
        "t": job.t,
        "model": version.digest,
        "steps": len(rows),
        "ranks": ranks_of(read_rows(scratch / TIMING)),
        "published": published,
        "first_loss": rows[0]["loss"],
        "metrics": {name: value for name, value in rows[published - 1].items() if name not in ("step", "epoch")},
        "held_out": measured[-1] if measured else {},
        "events": events,
    }


def train(
    job: TrainJob, data: TrainData, order: DataOrder, held: Ints, total: int, scratch: Path, progress: Progress
) -> tuple[Stepper, adapters.Adapter | None]:
    """The loop: from the last checkpoint, or from the start, to the last step or to an event that ends it.

    Returns the stepper with the weights that are to be published in it, and the adapter if one was trained.
    """
    config, t, us = job.config, max(job.t, 0), ranks.here()
    objective, peak = objective_of(config, job.t), at(config.learning_rate, t)
    torch.manual_seed(job.seed)
    model = load_model(job.start.path, job.model)
    told = lora.attach(model, config.lora, job.seed) if config.lora else {}
    network = network_of(model, config.speed)
    prepare(model, config)
    stepper: Stepper = Zero(network, config, us) if ranks.inside() else SingleDevice(network, config)
    opponent = None if config.speed.cached_scores or data.reference_PB is None else opponent_of(job, network)
    watched = layout(data, held, us, config, network.packed) if len(held) else None
    monitors = Monitors(config.monitors, objective)
    with Journal(scratch, config.keep_checkpoints, config.save_every, held_out=watched is not None, us=us) as journal:
        done, saved = journal.resume()
        if saved:
            stepper.load(saved)
        # The first rank has just cut these files, and over a network another one may still see what was there.
        rows, held_rows = us.told((read_rows(scratch / METRICS), read_rows(scratch / HELD_OUT)))
        events = [event for row in rows for event in monitors.see(row)]

        def look(step: int, end: Event | None) -> None:
            """Measure this step's weights on the held-out pairs, if that is due and not done, and keep the best."""
            due = end or step == total or step % config.evaluate_every == 0
            if watched is None or not due or (held_rows and held_rows[-1]["step"] == step):
                return
            measured = held_out.measure(watched, objective, stepper, us, model.device, lambda: progress.stopping)
            held_rows.append({"step": step, **measured})
            journal.write(HELD_OUT, held_rows[-1])
            if config.keep_best and held_out.is_best(held_rows, config.keep_best):
                journal.save(step, stepper.tensors(), best=True)

        if done:
            look(done, ending(events))  # a stop may have kept it from that
        last = done if ending(events) else total
        log.info("%d items, step %d to %d, %d items a step", len(order.items), done, last, config.batch_size)
        progress.start(total, "step")
        asked = time.monotonic()
        for step, batch in enumerate(batches(data, order, us, config, network.packed, done, last), done):
            started = time.monotonic()
            with lora.dropout(model, config.lora, job.seed, step, us.rank):
                measured = forward_backward(batch, objective, stepper, us, model.device, opponent)
            apart = measured.pop(APART, None)
            rate = learning_rate(step, total, peak, config)
            done = step + 1
            # One transfer a step: each .item() would make the device wait.
            values = torch.stack([*measured.values(), stepper.step(rate)]).tolist()
            row = {
                "step": step + 1,
                "epoch": round((step + 1) / order.steps_in_epoch, 6),
                **dict(zip([*measured, "grad_norm"], values, strict=True)),
                "learning_rate": rate,
            }
            seen = monitors.see(row)
            events, end = events + seen, ending(seen)
            if end and end.action == "refuse":
                raise TrainingDiverged(end.message)
            if step == 0:
                check_first_loss(row, None if apart is None else apart.item(), objective, config, job.model.dtype)
            journal.write(METRICS, row)
            took = {"seconds": time.monotonic() - started, "wait": started - asked}
            counts = {"tokens": batch.tokens, "pairs": batch.tokens_PB.shape[1], "ranks": us.size}
            journal.write(TIMING, {"step": step + 1, **took, **counts})
            for event in seen:
                log.warning("%s", event.message)
            if end and end.action == "roll-back":
                break
            try:
                look(step + 1, end)
                if end:
                    break
                stopping = us.any(progress.stopping)
            except Stopped:
                stopping = True
            if stopping or (step + 1 < total and (step + 1) % config.save_every == 0):
                journal.save(step + 1, stepper.tensors())
            shown = {f"held out {name}": held_rows[-1][name] for name in measured} if held_rows else {}
            progress.show(step + 1, **{name: row[name] for name in measured}, **shown)
            if stopping:
                raise Stopped(STOPPED)
            asked = time.monotonic()
        published = held_out.published_step(config, done, held_rows, events)
        if published != done:
            stepper.load(journal.tensors_at(published))
        if config.lora is None:
            return stepper, None
        if published == done:
            # Each rank holds a share of the adapter: the disk brings them together.
            journal.save(done, stepper.tensors())
        return stepper, lora.trained(told, journal.tensors_at(published))


def batches(
    data: TrainData, order: DataOrder, us: Ranks, config: TrainConfig, packed: bool, first: int, last: int
) -> Iterator[Batch]:
    """What each step trains on, laid out while the one before it computes."""

    def make(step: int) -> Batch:
        return layout(data, order.batch(step), us, config, packed)

    return ahead(make, first, last) if config.speed.prefetch else (make(step) for step in range(first, last))


def layout(data: TrainData, items: Ints, us: Ranks, config: TrainConfig, packed: bool) -> Batch:
    """Items as this training lays them out."""
    return batch_of(
        data, items, us, config.micro_batch_tokens, packed=packed, prefix_sharing=config.speed.prefix_sharing
    )


def forward_backward(
    batch: Batch,
    objective: Objective,
    stepper: Stepper,
    us: Ranks,
    device: torch.device,
    opponent: Callable[[Rows], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Leave the gradient of the batch's loss with the stepper; returns the batch's metrics as float32 scalars.

    All responses to a prompt are in one forward pass, since the loss joins them. However the batch is split, each
    micro-batch adds its share of the same sum. With an `opponent`, its log-probabilities are computed here and now.
    Beside the metrics is `APART`, where the reference is the opponent.
    """
    tokens_PB = torch.from_numpy(batch.tokens_PB).to(device)
    player_PB = torch.zeros(tokens_PB.shape, dtype=torch.float32, device=device)
    reference_PB = None if batch.reference_PB is None else batch.reference_PB.to(device)
    if reference_PB is not None and opponent is not None:
        reference_PB = torch.zeros_like(reference_PB)
    denominator = objective.denominator(batch.tokens_PB)
    for part in batch.parts:
        rows, chosen_b = part.rows.to(device), part.chosen_b.to(device)
        if opponent is not None and reference_PB is not None:
            # Idle parts too: where weights are shared out, all ranks must be there to put them together.
            with torch.no_grad():
                theirs_Pb = opponent(rows).view(len(tokens_PB), -1)
            if not part.idle:
                reference_PB[:, chosen_b] = theirs_Pb[: len(reference_PB)]
        weight = 0 if part.idle else 1 / denominator
        losses = partial(
            weighted_losses,
            objective=objective,
            weight=weight,
            reference_Pb=None if reference_PB is None else reference_PB[:, chosen_b],
            tokens_Pb=tokens_PB[:, chosen_b],
        )
        loss, logps_S = stepper.loss(rows, ItemLosses(batch.tokens_PB[:, part.chosen_b.numpy()], losses))
        stepper.backward(loss, last=part is batch.parts[-1])
        if not part.idle:
            player_PB[:, chosen_b] = logps_S.view(len(tokens_PB), -1)
    us.sum(player_PB)
    if opponent is not None and reference_PB is not None:
        us.sum(reference_PB)
    measured = objective.metrics(player_PB, reference_PB, tokens_PB)
    if reference_PB is not None and (apart := objective.apart(player_PB, reference_PB, tokens_PB)) is not None:
        measured[APART] = apart
    return {name: value.float() for name, value in measured.items()}


def weighted_losses(
    player_Pb: Tensor,
    items: slice,
    *,
    objective: Objective,
    weight: float,
    reference_Pb: Tensor | None,
    tokens_Pb: Tensor,
) -> Tensor:
    """What some items of a micro-batch add to the batch's loss, (b,)."""
    reference = None if reference_Pb is None else reference_Pb[:, items]
    return objective.losses(player_Pb, reference, tokens_Pb[:, items]) * weight


def opponent_of(job: TrainJob, network: ResponseLogps) -> Callable[[Rows], Tensor]:
    """θ_t itself, for those who would rather score it at every step. A player that is an adapter contains it."""
    if job.config.lora:
        return lora.opponent_in(network)
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
            drops = config.lora is not None and config.lora.dropout > 0
            layer.forward = partial(torch_checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=drops)


def publish_weights(
    job: TrainJob, identity: dict[str, Any], stepper: Stepper, adapter: adapters.Adapter | None, us: Ranks
) -> ModelVersion | None:
    """Publish the trained model with its tokenizer as version t + 1. None on all ranks but the first."""
    scratch = scratch_of(job.weights)
    if us.first:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    if adapter is None:
        stepper.save(scratch, load_tokenizer(job.start.path, job.model))
    elif us.first:
        assert job.config.lora is not None
        lora.publish(scratch, adapter=adapter, start=job.start.path, t=job.t, lora=job.config.lora, model=job.model)
    fields = {"t": job.t + 1, "parent": job.start.digest}
    return artifacts.publish(scratch, job.weights, identity, fields, ModelVersion) if us.first else None
