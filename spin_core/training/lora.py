"""Training of low-rank adapters instead of all weights, through peft.

The player is an adapter on the frozen weights that the iteration started from. Its second factor starts at zero, so the
player starts with exactly its opponent's outputs, and the first loss is log 2.

`publish` writes a version merged or stacked; `models/adapters.py` describes both forms.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spin_core.config.model import ModelConfig
from spin_core.config.train import LoraConfig
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError
from spin_core.models.adapters import Adapter, copy_as_stacked, factors_by_layer, merge_adapters, write_adapter
from spin_core.models.files import ADAPTERS, save_model
from spin_core.models.loading import load_model
from spin_core.models.logps import ResponseLogps
from spin_core.models.packing import Rows

_PLAYER = "player"
"""The adapter's name during training."""

_WEIGHT = "weight/"
"""Prefix of the weights among a stepper's tensors."""


def adapter_parameters(model: PreTrainedModel, layers: Sequence[str], lora: LoraConfig) -> int:
    """The number of parameters of an adapter on these layers."""
    weights: list[Any] = [model.get_submodule(name).weight for name in layers]
    return sum(lora.rank * sum(weight.shape) for weight in weights)


def adapted_layers(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Full names of the layers that get an adapter: those in `targets`, or all linear ones except the output.

    Reads no weights, so a model on the meta device is enough.

    Raises:
        ConfigError: A target does not exist, or is tied to the embeddings. The message lists the model's layers.
    """
    output = model.get_output_embeddings()
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D))}
    if not targets:
        return [name for name, layer in linear.items() if layer is not output]
    available = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    chosen: list[str] = []
    for target in targets:
        named = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not named:
            raise ConfigError(
                f"train.lora.targets names {target!r}, and {type(model).__name__} has no such linear layer: "
                f"choose among {available}"
            )
        chosen += named
    if output is not None and output.weight is model.get_input_embeddings().weight:
        for name in chosen:
            if linear[name] is output:
                raise ConfigError(
                    f"train.lora.targets names {name}, which shares its weights with the embeddings, so that an "
                    f"adapter would not stay in it: leave it out of {available}"
                )
    return list(dict.fromkeys(chosen))


def attach(model: PreTrainedModel, lora: LoraConfig, seed: int) -> dict[str, Any]:
    """Freeze the model, and add an adapter that changes nothing yet, in the model's own precision.

    Returns:
        The adapter's configuration as peft writes it, for `trained_adapter`.
    """
    import peft

    layers = adapted_layers(model, lora.targets)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_short_names(model, layers),
        # Conv1D has its weight transposed. All layers of a model are of one kind.
        fan_in_fan_out=isinstance(model.get_submodule(layers[0]), Conv1D),
        task_type="CAUSAL_LM",
    )
    model.requires_grad_(False)
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(settings, model, adapter_name=_PLAYER)
    model.eval()
    values = {**settings.to_dict(), "inference_mode": True}
    # A set has another order in every process, and files must have the same digest.
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def _short_names(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """The layers' last names if no other layer has them, else their full names."""
    last = {name.rpartition(".")[2] for name in layers}
    named = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in last}
    return sorted(last if named == set(layers) else layers)


@contextlib.contextmanager
def dropout(model: nn.Module, lora: LoraConfig | None, seed: int, step: int, rank: int = 0) -> Iterator[None]:
    """Within this context adapters drop inputs, if configured.

    What is dropped depends only on seed, step and rank, so a resumed training drops the same.
    """
    if lora is None or not lora.dropout:
        yield
        return
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))
    try:
        for layer in layers:
            layer.lora_dropout.train()
        yield
    finally:
        for layer in layers:
            layer.lora_dropout.eval()


def opponent_scorer(network: ResponseLogps) -> Callable[[Rows], Tensor]:
    """A function that scores rows under the opponent, which is the player without its adapter; (S,)."""

    def logps(rows: Rows) -> Tensor:
        with detached(network.model):
            logps_S: Tensor = network(rows)
        return logps_S

    return logps


@contextlib.contextmanager
def detached(model: nn.Module) -> Iterator[None]:
    """Within this context the model is the opponent: its adapter is skipped."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def publish(folder: Path, *, adapter: Adapter, start: Path, t: int, lora: LoraConfig, model: ModelConfig) -> None:
    """Write version t + 1 into `folder`: the version that iteration `t` started from, and the adapter it trained.

    θ_0's own training (t = -1) always merges.
    """
    if lora.across == "stack" and t >= 0:
        copy_as_stacked(start, folder)
    else:
        merged = load_model(start, model.model_copy(update={"device": "cpu"}))
        merge_adapters(merged, [adapter])
        save_model(merged, load_tokenizer(start, model), folder)
    write_adapter(adapter, folder / ADAPTERS / f"{t + 1:02d}")


def trained_adapter(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter in a stepper's tensors, its float32 masters; `config` is what `attach` returned."""
    return Adapter(
        config,
        factors_by_layer(
            {name.removeprefix(_WEIGHT): value for name, value in tensors.items() if name.startswith(_WEIGHT)}
        ),
    )
