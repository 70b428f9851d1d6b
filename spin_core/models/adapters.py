"""Low-rank adapters on disk, in peft's format: read, write, combine and merge into weights."""

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
from spin_core.models.files import ADAPTERS
from spin_core.store import files

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """One adapter: its configuration in peft's words, and its factors."""

    config: dict[str, Any]

    factors: dict[str, tuple[Tensor, Tensor]]
    """A, (rank, in), and B, (out, rank), by the name of the layer that they adapt. Float32, on the CPU."""

    def delta(self, layer: str, device: torch.device) -> Tensor:
        """What it adds to a layer's weight, (out, in) float32."""
        a, b = (factor.to(device) for factor in self.factors[layer])
        return b @ a * self.scale

    @property
    def scale(self) -> float:
        """How many times the product of the factors counts."""
        return float(self.config["lora_alpha"] / self.config["r"])


def pairs_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors by layer, from `<layer>.lora_A[.<adapter>].weight` and `<layer>.lora_B[.<adapter>].weight`."""
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layer, _, factor = name.rpartition(".lora_")
        by_layer.setdefault(layer, {})[factor[:1]] = value.detach().float().cpu().contiguous()
    return {layer: (pair["A"], pair["B"]) for layer, pair in by_layer.items()}


def link(source: Path, target: Path) -> None:
    """The same file in another place: a link where the file system can, else a copy."""
    if source.is_symlink():
        target.symlink_to(source.resolve())
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@torch.no_grad()
def merge(model: PreTrainedModel, adapters: Sequence[Adapter]) -> None:
    """Add adapters to the weights of the layers, in float32 and rounded once."""
    for layer in dict.fromkeys(layer for adapter in adapters for layer in adapter.factors):
        module = model.get_submodule(layer)
        weight: Any = module.weight
        total = weight.float()
        for adapter in adapters:
            if layer in adapter.factors:
                delta = adapter.delta(layer, weight.device)
                total = total + (delta.T if isinstance(module, Conv1D) else delta)
        weight.copy_(total)


def combined(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that adds what all of them add: factors side by side (peft's `cat`), ranks adding up."""
    rank = sum(adapter.config["r"] for adapter in adapters)
    factors = {}
    for layer in adapters[0].factors:
        a = [adapter.factors[layer][0] * adapter.scale for adapter in adapters]
        b = [adapter.factors[layer][1] for adapter in adapters]
        factors[layer] = (torch.cat(a), torch.cat(b, dim=1))
    return Adapter({**adapters[0].config, "r": rank, "lora_alpha": rank}, factors)


def write(adapter: Adapter, folder: Path) -> None:
    """Write an adapter as peft reads it."""
    folder.mkdir(parents=True)
    tensors = {
        f"{PEFT_PREFIX}{layer}.lora_{name}.weight": factor.contiguous()
        for layer, pair in adapter.factors.items()
        for name, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / TENSORS, {"format": "pt"})
    files.dump_json(folder / CONFIG, adapter.config)


def read(folder: Path) -> list[Adapter]:
    """The adapters of a published version, oldest first. `DamagedArtifact` if one cannot be read."""
    found = []
    for path in sorted((folder / ADAPTERS).iterdir(), key=lambda path: int(path.name)):
        try:
            config = json.loads((path / CONFIG).read_text("utf-8"))
            tensors = load_file(path / TENSORS)
            found.append(
                Adapter(config, pairs_of({name.removeprefix(PEFT_PREFIX): value for name, value in tensors.items()}))
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DamagedArtifact(
                f"the adapter in {path} cannot be read ({error}): restore or remove {folder}"
            ) from error
    return found
