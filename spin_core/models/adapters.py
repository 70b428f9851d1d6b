"""Low-rank adapters on disk, in peft's format: read, write, combine, and merge into weights.

A version that was trained as an adapter is published in one of two forms:

    merged    a plain model folder with the adapter merged into the weights in float32, and next to these
              `adapters/<version>/`
    stacked   `base/` with links to the weights of θ_0, which are never rounded again, and `adapters/<version>/` of
              every iteration so far. `load_model` adds them up in float32 and rounds once

Each adapter is float32, as it was trained, and fits the version that it was trained from. A stacked folder has no
weights at its top level. So a program that knows nothing of adapters fails, rather than loading θ_0 by mistake.

How adapters are trained is in `training/lora.py`.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spin_core.errors import DamagedArtifact
from spin_core.models.files import ADAPTERS, BASE, is_stacked, weights_of
from spin_core.store.files import dump_json
from spin_core.store.identity import MANIFEST
from spin_core.store.weights_index import WEIGHTS_INDEX

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """One adapter: its configuration with peft's names, and its factors."""

    config: dict[str, Any]

    factors: dict[str, tuple[Tensor, Tensor]]
    """A, (rank, in), and B, (out, rank), by the name of the layer that they adapt: float32, on the CPU."""

    def delta(self, layer: str, device: torch.device) -> Tensor:
        """What the adapter adds to a layer's weight, (out, in) float32."""
        a, b = (factor.to(device) for factor in self.factors[layer])
        return b @ a * self.scale

    @property
    def scale(self) -> float:
        """The factor of the product B A."""
        return float(self.config["lora_alpha"] / self.config["r"])


def factors_by_layer(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors by layer, from `<layer>.lora_A[.<adapter>].weight` and `<layer>.lora_B[.<adapter>].weight`."""
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layer, _, factor = name.rpartition(".lora_")
        by_layer.setdefault(layer, {})[factor[:1]] = value.detach().float().cpu().contiguous()
    return {layer: (pair["A"], pair["B"]) for layer, pair in by_layer.items()}


@torch.no_grad()
def merge_adapters(model: PreTrainedModel, adapters: Sequence[Adapter]) -> None:
    """Add adapters to a model's weights: summed in float32, rounded once to the weights' precision."""
    for layer in dict.fromkeys(layer for adapter in adapters for layer in adapter.factors):
        module = model.get_submodule(layer)
        weight: Any = module.weight
        total = weight.float()
        for adapter in adapters:
            if layer in adapter.factors:
                delta = adapter.delta(layer, weight.device)
                total = total + (delta.T if isinstance(module, Conv1D) else delta)
        weight.copy_(total)


def combine_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that adds what all of them add together.

    The factors are concatenated along the rank (peft calls this `cat`), so that B A is the sum of all products, and
    scales are multiplied into A.
    """
    rank = sum(adapter.config["r"] for adapter in adapters)
    factors = {}
    for layer in adapters[0].factors:
        a = [adapter.factors[layer][0] * adapter.scale for adapter in adapters]
        b = [adapter.factors[layer][1] for adapter in adapters]
        factors[layer] = (torch.cat(a), torch.cat(b, dim=1))
    return Adapter({**adapters[0].config, "r": rank, "lora_alpha": rank}, factors)


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write an adapter as peft reads it."""
    folder.mkdir(parents=True)
    tensors = {
        f"{_PEFT_PREFIX}{layer}.lora_{name}.weight": factor.contiguous()
        for layer, pair in adapter.factors.items()
        for name, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / _TENSORS, {"format": "pt"})
    dump_json(folder / _CONFIG, adapter.config)


def read_adapters(folder: Path) -> list[Adapter]:
    """The adapters of a published version, oldest first. `DamagedArtifact` if one cannot be read."""
    adapters = []
    for path in sorted((folder / ADAPTERS).iterdir(), key=lambda path: int(path.name)):
        try:
            config = json.loads((path / _CONFIG).read_text("utf-8"))
            tensors = load_file(path / _TENSORS)
            named = {name.removeprefix(_PEFT_PREFIX): value for name, value in tensors.items()}
            adapters.append(Adapter(config, factors_by_layer(named)))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DamagedArtifact(
                f"the adapter in {path} cannot be read ({error}): restore or remove {folder}"
            ) from error
    return adapters


def copy_as_stacked(start: Path, folder: Path) -> None:
    """Write all of version `start` into `folder` as a stacked version, to which another adapter can be added.

    Weights of θ_0 are linked. Adapters, tokenizer and configuration are copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BASE).mkdir()
    weights = weights_of(start)
    for file in sorted(file for file in weights.iterdir() if file.is_file()):
        if file.suffix in (".safetensors", ".py") or file.name in ("config.json", WEIGHTS_INDEX):
            _link_or_copy(file, folder / BASE / file.name)
    for file in sorted(file for file in start.iterdir() if file.is_file()):
        if not (file.suffix == ".safetensors" or file.name in (WEIGHTS_INDEX, MANIFEST)):
            shutil.copyfile(file, folder / file.name)
    if is_stacked(start):
        shutil.copytree(start / ADAPTERS, folder / ADAPTERS)


def _link_or_copy(source: Path, target: Path) -> None:
    """Put the same file at another path: a link where the file system can, else a copy."""
    if source.is_symlink():
        target.symlink_to(source.resolve())
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
