"""The player learns to tell real responses from its opponent's: `python -m spin_core.train job.json`.

Shapes: B pairs, P sides of a pair (real, generated; for loss `sft` real alone).

The model stays in evaluation mode, since dropout would make the player another model than the opponent that was
scored: the margins would begin as noise, and the first loss would not be log 2.
"""

import logging
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from spin_core import store
from spin_core.batches import DataOrder, Ints, Sequences, micro_batches, read_token_ids
from spin_core.checkpoint import CHECKPOINTS, METRICS, TIMING, Journal, read_rows
from spin_core.config import at
from spin_core.errors import ConfigError, DataError, Stopped, TrainingDiverged
from spin_core.jobs import TrainJob
from spin_core.logps import ResponseLogps, rows_of
from spin_core.losses import pair_metrics, sft_loss, spin_losses
from spin_core.models import load_model, load_tokenizer, save_model
from spin_core.monitors import Monitors, check_finite, check_first_loss
from spin_core.optim import Optimizer, learning_rate
from spin_core.phase import Progress, main
from spin_core.records import ModelVersion, TrainRun

log = logging.getLogger("spin_core")


@dataclass(frozen=True)
class TrainData:
    """What there is to train on: all real responses, then all generated ones, and the opponent's view of them."""

    sequences: Sequences
    opponent_PB: Tensor | None
    """Log-probabilities under the opponent; None for loss `sft`, which has one side."""

    @property
    def sides(self) -> int:
        """P."""
        return 1 if self.opponent_PB is None else 2

    @property
    def items(self) -> int:
        """Pairs; for loss `sft`, responses."""
        return len(self.sequences) // self.sides

    def rows(self, chosen: Ints) -> Ints:
        """The sequences of the chosen items: their real responses, then their generated ones."""
        return np.concatenate([chosen + side * self.items for side in range(self.sides)])


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
        model = train(job, data, order, total, scratch, progress)
        version = publish_weights(job, asked, model)
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


def train(
    job: TrainJob, data: TrainData, order: DataOrder, total: int, scratch: Path, progress: Progress
) -> PreTrainedModel:
    """The loop: from the last checkpoint, or from the start, to the last step."""
    config, t = job.config, max(job.t, 0)
    beta, peak = at(config.beta, t), at(config.learning_rate, t)
    torch.manual_seed(job.seed)
    model = prepared(load_model(job.start.path, job.model), config.gradient_checkpointing)
    logps = ResponseLogps(model)
    optimizer = Optimizer(model, config)
    monitors = Monitors(beta)
    with Journal(scratch, config.keep_checkpoints) as journal:
        done, saved = journal.resume()
        if saved:
            optimizer.load(saved)
        for row in read_rows(scratch / METRICS):
            monitors.see(row)
        log.info("%d items, step %d to %d, %d items a step", data.items, done, total, config.batch_size)
        progress.start(total, "step")
        for step in range(done, total):
            started = time.monotonic()
            batch = order.batch(step)
            measured = forward_backward(job, data, batch, logps, optimizer, beta)
            measured["grad_norm"] = optimizer.clip()
            # One transfer a step: each .item() would make the device wait.
            values = torch.stack([value.float() for value in measured.values()]).tolist()
            row = {
                "step": step + 1,
                "epoch": round((step + 1) / order.steps_in_epoch, 6),
                **dict(zip(measured, values, strict=True)),
                "learning_rate": learning_rate(step, total, peak, config),
            }
            check_finite(row)
            if step == 0 and config.loss != "sft":
                check_first_loss(row["loss"], config, beta, job.model.dtype)
            optimizer.step(row["learning_rate"])
            journal.write(METRICS, row)
            tokens = int(data.sequences.lengths_S[data.rows(batch)].sum())
            journal.write(TIMING, {"step": step + 1, "seconds": time.monotonic() - started, "tokens": tokens})
            for event in monitors.see(row):
                log.warning("%s", event)
                if config.on_divergence == "stop":
                    raise TrainingDiverged(f"{event}; or set train.on_divergence to warn")
            due = (step + 1) % config.save_every == 0 and step + 1 < total
            if due:
                journal.save(step + 1, optimizer.tensors())
            try:
                progress.tell(step + 1, **{name: row[name] for name in measured})
            except Stopped:
                if not due:
                    journal.save(step + 1, optimizer.tensors())
                raise
    return model


def forward_backward(
    job: TrainJob, data: TrainData, batch: Ints, logps: ResponseLogps, optimizer: Optimizer, beta: float
) -> dict[str, Tensor]:
    """Leave the gradient of the batch's mean loss on the masters; returns the batch's metrics as scalars.

    Both sides of a pair are in one forward pass, since the loss joins them. However the batch is split, each
    micro-batch adds its share of the same mean.
    """
    device = logps.model.device
    sequences, config = data.sequences, job.config
    rows_B = data.rows(batch).reshape(data.sides, -1)
    lengths_B = sequences.lengths_S[rows_B].max(axis=0)
    response_tokens = int((sequences.lengths_S - sequences.prompts_S)[rows_B[0]].sum())
    player_PB = torch.empty(rows_B.shape, dtype=torch.float32, device=device)
    opponent_PB = None if data.opponent_PB is None else data.opponent_PB[:, torch.from_numpy(batch)].to(device)

    def mean_loss(player_PB: Tensor, opponent_PB: Tensor | None) -> Tensor:
        """The part of the batch's mean loss that these pairs make up."""
        if opponent_PB is None or config.loss == "sft":
            return sft_loss(logps_B=player_PB[0], tokens=response_tokens)
        losses_B = spin_losses(**by_name(player_PB, opponent_PB), beta=beta, kind=config.loss)
        return losses_B.sum() / len(batch)

    for chosen in micro_batches(lengths_B, data.sides, config.micro_batch_tokens):
        part_PB = logps(rows_of(sequences, rows_B[:, chosen].reshape(-1), device)).view(data.sides, -1)
        at_B = torch.from_numpy(chosen).to(device)
        mean_loss(part_PB, None if opponent_PB is None else opponent_PB[:, at_B]).backward()  # type: ignore[no-untyped-call]
        optimizer.gather()
        player_PB[:, at_B] = part_PB.detach()
    metrics = {"loss": mean_loss(player_PB, opponent_PB)}
    if opponent_PB is None:
        return {**metrics, "logps/real": player_PB[0].mean()}
    return {**metrics, **pair_metrics(**by_name(player_PB, opponent_PB), beta=beta)}


def by_name(player_PB: Tensor, opponent_PB: Tensor) -> dict[str, Tensor]:
    """The four log-probabilities of each pair, under the names that the losses take."""
    return {
        "player_real_B": player_PB[0],
        "player_generated_B": player_PB[1],
        "opponent_real_B": opponent_PB[0],
        "opponent_generated_B": opponent_PB[1],
    }


def prepared(model: PreTrainedModel, gradient_checkpointing: bool) -> PreTrainedModel:
    """The model as it trains: in evaluation mode, and recomputing its layers' activations if asked to."""
    model.eval()
    if gradient_checkpointing:
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ConfigError(
                f"{type(model).__name__} cannot recompute activations: set train.gradient_checkpointing to false"
            )
        for layer in layers:
            # Not the model's own switch, since that one works in training mode alone, where dropout is on.
            layer.forward = partial(torch_checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    return model


def read_data(job: TrainJob) -> TrainData:
    """The job's pairs and their scores, or for loss `sft` its prompts and real responses."""
    if job.config.loss == "sft":
        assert job.prompts is not None, "loss sft trains on prompts"
        prompt_ids, real_ids = read_token_ids(job.prompts.path / "train.parquet", "prompt_ids", "response_ids")
        data = TrainData(Sequences.of(prompt_ids, real_ids), None)
    else:
        assert job.pairs is not None, f"loss {job.config.loss} trains on pairs"
        assert job.scores is not None, f"loss {job.config.loss} needs the opponent's scores"
        assert (job.scores.pairs, job.scores.opponent) == (job.pairs.digest, job.start.digest), "scores of other pairs"
        prompt_ids, real_ids, generated_ids = read_token_ids(
            job.pairs.path / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids"
        )
        table = pq.read_table(job.scores.path / "logps.parquet", columns=["real_logps", "generated_logps"])
        opponent_PB = torch.from_numpy(np.stack([column.to_numpy() for column in table.columns]))
        data = TrainData(Sequences.of(prompt_ids + prompt_ids, real_ids + generated_ids), opponent_PB)
        assert opponent_PB.shape == (2, len(prompt_ids)), "scores and pairs have the same rows"
    if data.items == 0:
        raise DataError(
            "nothing is left to train on: see the counts of dropped rows, and loosen `pairs` or add prompts"
        )
    return data


def publish_weights(job: TrainJob, asked: dict[str, Any], model: PreTrainedModel) -> ModelVersion:
    """Publish the trained model with its tokenizer as version t + 1."""
    scratch = job.weights.with_name(f".{job.weights.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_model(model, load_tokenizer(job.start.path, job.model), scratch)
    fields = {"t": job.t + 1, "parent": job.start.digest}
    return store.publish(scratch, job.weights, asked, fields, ModelVersion)


if __name__ == "__main__":
    main(TrainJob, TrainRun, run)
