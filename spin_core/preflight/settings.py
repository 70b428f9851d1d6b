"""The findings of `spin check` about the configuration alone: schedules, metrics that are kept, ranks."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from pydantic import BaseModel

from spin_core.config.base import SCHEDULE, at
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError, count
from spin_core.preflight.findings import Inspection, listed


def inspect_settings(inspection: Inspection, config: RunConfig) -> None:
    """The schedules as they will run, and warnings about values that are not used or do not fit together."""
    steps, train = range(config.iterations), config.train
    mixes = any(at(config.pairs.mix_previous, t) for t in steps[1:])
    schedules = {
        "beta": train.beta,
        "learning rate": train.learning_rate,
        "epochs": train.epochs,
        "temperature": config.generate.temperature,
    }
    schedule_text = ", ".join(f"{name} {listed(at(values, t) for t in steps)}" for name, values in schedules.items())
    trains_on = "the last two iterations' pairs" if mixes else "each iteration's own pairs"
    inspection.add("config", f"{count(config.iterations, 'iteration')} on {trains_on}; {schedule_text}")
    for name, values in _schedules(config):
        if len(values) > config.iterations:
            unused = len(values) - config.iterations
            text = f"{name} has {len(values)} values for {count(config.iterations, 'iteration')}"
            inspection.add("config", f"{text}: the last {unused} go unused", "warn")
    if train.loss in ("t-spin", "space") and any(at(train.beta, t) != 1 for t in steps):
        inspection.add("config", f"train.loss {train.loss} is made for train.beta 1, which its paper takes", "warn")


def inspect_kept_metric(_inspection: Inspection, config: RunConfig) -> None:
    """The metric that chooses the best checkpoint is measured."""
    from spin_core.training.held_out import check_settings

    check_settings(config.train)
    check_settings(config.sft.train)


def inspect_ranks(inspection: Inspection, config: RunConfig) -> None:
    """If several ranks train together: DeepSpeed is installed, its settings are valid, and there are enough GPUs."""
    speed = config.train.speed
    ranks = speed.ranks * speed.nodes
    if ranks == 1 and not speed.deepspeed:
        return
    import torch

    from spin_core.runtime.devices import device_of
    from spin_core.training.deepspeed_config import MISSING, stage_of, zero_settings

    stage = stage_of(zero_settings(config.train, config.model.dtype))
    if find_spec("deepspeed") is None:
        raise ConfigError(MISSING)
    gpus = torch.cuda.device_count()
    if device_of(config.model).type == "cuda" and gpus < speed.ranks:
        raise ConfigError(f"train.speed.ranks is {speed.ranks}, and this node has {gpus} GPUs: lower it")
    inspection.add("config", f"trains on {count(ranks, 'rank')} on {count(speed.nodes, 'node')}, ZeRO stage {stage}")
    if ranks > config.train.batch_size:
        idle = ranks - config.train.batch_size
        inspection.add("config", f"{count(idle, 'rank')} will idle: set train.batch_size to {ranks} or more", "warn")


def _schedules(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The dotted name and the values of every setting with one value per iteration."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _schedules(value, f"{prefix}{name}.")
        elif SCHEDULE in field.metadata and isinstance(value, tuple):
            yield prefix + name, value
