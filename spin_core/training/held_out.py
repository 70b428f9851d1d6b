"""Pairs that are kept out of training to measure it on, and the choice of the weights that are published.

Shapes: P responses to each of B held-out items, b of a micro-batch.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from spin_core.config.train import TrainConfig
from spin_core.data.sequences import Ints
from spin_core.errors import STOPPED, ConfigError, DataError, Stopped, TrainingDiverged
from spin_core.runtime.ranks import Ranks
from spin_core.store.records import Event
from spin_core.training.monitors import ending
from spin_core.training.objective import Objective
from spin_core.training.stepper import Stepper
from spin_core.training.train_data import Batch, TrainData

_Rows = Sequence[Mapping[str, float]]


def check_settings(config: TrainConfig) -> None:
    """Raise `ConfigError` for settings that choose weights by a metric that will not be measured."""
    if config.keep_best and not config.held_out:
        raise ConfigError(
            f"train.keep_best {config.keep_best} is measured on held-out pairs, and none are held out: "
            "set train.held_out to 0.05, or train.keep_best to nothing"
        )
    if config.keep_best.startswith("rewards/") and config.loss == "sft":
        raise ConfigError(f"loss sft has no {config.keep_best}: set train.keep_best to loss or logps/real")


def split(data: TrainData, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Indices of the items to train on, and of those to hold out: about `fraction` of all prompts.

    A digest of the prompt's tokens and the seed decides, so all pairs of one prompt are on one side, in every iteration
    and whatever other prompts there are.

    Raises:
        DataError: One of the sides is empty.
    """
    limit = int(fraction * 2**64)
    held = np.zeros(data.items, dtype=bool)
    for item, prompt in enumerate(data.prompts() if fraction else ()):
        text = str(seed).encode() + b":" + prompt.astype("<i8").tobytes()
        held[item] = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") < limit
    trained, kept_out = np.flatnonzero(~held), np.flatnonzero(held)
    if fraction and 0 in (len(trained), len(kept_out)):
        side = "holds none out" if len(trained) else "leaves none to train on"
        raise DataError(
            f"train.held_out {fraction} of {data.items} {side}: choose another fraction, or 0 to train on all"
        )
    return trained, kept_out


@torch.no_grad()
def measure(
    batch: Batch,
    objective: Objective,
    stepper: Stepper,
    world: Ranks,
    device: torch.device,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The objective's metrics on the held-out items, which are laid out as one batch. No gradient, no dropout.

    Raises:
        Stopped: `stopping` returned True on any rank, between two micro-batches.
    """
    tokens_PB = torch.from_numpy(batch.tokens_PB).to(device)
    player_PB = torch.zeros(tokens_PB.shape, dtype=torch.float32, device=device)
    for micro_batch in batch.micro_batches:
        if world.any(stopping()):
            raise Stopped(STOPPED)
        logps_Pb = stepper.logps(micro_batch.rows.to(device)).view(len(tokens_PB), -1)
        if not micro_batch.idle:
            player_PB[:, micro_batch.chosen_b.to(device)] = logps_Pb
    world.sum(player_PB)
    reference_PB = None if batch.reference_PB is None else batch.reference_PB.to(device)
    metrics = objective.metrics(player_PB, reference_PB, tokens_PB)
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def is_best(rows: _Rows, metric: str) -> bool:
    """Whether the last row is better than all before it."""
    return best(rows, metric) is rows[-1]


def best(rows: _Rows, metric: str) -> Mapping[str, float] | None:
    """The row with the best value of a metric, the first of equals; None without rows. For losses, lower is better."""
    # NaN is never the best, and is not equal to itself.
    numbers = [row for row in rows if row[metric] == row[metric]]
    return (min if metric == "loss" else max)(numbers, key=lambda row: row[metric], default=None)


def published_step(config: TrainConfig, steps: int, held_rows: _Rows, events: Sequence[Event]) -> int:
    """The step whose weights are published, after a training of `steps` steps.

    With `keep_best` it is the best on held-out pairs. Otherwise it is the last, or after an event that rolls back the
    last regular checkpoint before it. A checkpoint that a stop on request has left does not count, so that a stop does
    not change the result.

    Raises:
        TrainingDiverged: There is no regular checkpoint before the event.
    """
    event = ending(events)
    row = best(held_rows, config.keep_best) if config.keep_best else None
    if row is not None:
        return round(row["step"])
    if event is not None and event.action == "roll-back":
        regular: int = (event.step - 1) // config.save_every * config.save_every
        if not regular:
            raise TrainingDiverged(f"{event.message}; but there is no checkpoint before it: lower train.save_every")
        return regular
    return steps
