"""The player and its opponent in memory, as a training needs them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as recompute
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from spin_core.config.train import TrainConfig
from spin_core.errors import ConfigError
from spin_core.models.loading import load_model
from spin_core.models.logps import ResponseLogps, response_logps
from spin_core.runtime import ranks
from spin_core.runtime.ranks import Ranks
from spin_core.store.jobs import TrainJob
from spin_core.training import lora
from spin_core.training.gradient import Scorer
from spin_core.training.optim import SingleDeviceStepper
from spin_core.training.stepper import Stepper
from spin_core.training.zero import Zero


@dataclass(frozen=True)
class Player:
    """A model that trains."""

    model: PreTrainedModel
    network: ResponseLogps
    """Scores responses under the model."""
    stepper: Stepper
    """Moves the model's weights."""
    adapter_config: dict[str, Any]
    """The adapter's configuration as peft writes it; empty if all weights train."""


def set_up_player(job: TrainJob, world: Ranks) -> Player:
    """Load the model that the job starts from, with its adapter and its optimizer."""
    config = job.config
    model = load_model(job.start.path, job.model)
    adapter_config = lora.attach(model, config.lora, job.seed) if config.lora else {}
    network = response_logps(model, config.speed)
    prepare(model, config)
    stepper: Stepper = Zero(network, config, world) if ranks.is_rank() else SingleDeviceStepper(network, config)
    return Player(model, network, stepper, adapter_config)


def prepare(model: PreTrainedModel, config: TrainConfig) -> None:
    """Put the model into evaluation mode, and compile or recompute its layers if configured.

    Raises:
        ConfigError: The model's layers cannot recompute their activations.
    """
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
            # The model's own switch works only in training mode, where dropout is on.
            drops = config.lora is not None and config.lora.dropout > 0
            layer.forward = partial(recompute, layer.forward, use_reentrant=False, preserve_rng_state=drops)


def opponent_scorer(job: TrainJob, network: ResponseLogps) -> Scorer:
    """θ_t itself, to score it at every step. With an adapter it is the player's model without the adapter."""
    if job.config.lora:
        return lora.opponent_scorer(network)
    return response_logps(load_model(job.start.path, job.model), job.config.speed).requires_grad_(False)
