"""Model folders on disk: where their weights are, whether these are safe to read, and how a model is saved."""

import os
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_core.errors import ModelError
from spin_core.store.weights_index import WEIGHTS_INDEX, indexed_files

BASE, ADAPTERS = "base", "adapters"
"""In the folder of a version that stacks adapters: θ_0's weights, and the adapters by version (see `adapters.py`)."""


def is_stacked(folder: Path) -> bool:
    """Whether a version is a stack of adapters on θ_0's weights."""
    return (folder / BASE).is_dir() and (folder / ADAPTERS).is_dir()


def weights_of(folder: Path) -> Path:
    """The folder that holds a version's weights."""
    return folder / BASE if is_stacked(folder) else folder


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a folder that `from_pretrained` and inference engines load.

    `weights`, if given, are written in place of the model's own.
    """
    if model.device.type == "cpu":
        # To save, transformers loads DeepSpeed where it is installed, which otherwise warns of a missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def check_safetensors(folder: Path) -> None:
    """Raise `ModelError` unless a folder holds plain weights in a format that runs no code when it is read.

    Their index may name no files elsewhere, which libraries would open.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder: model.path must name a model's folder or a hub name")
    if is_stacked(folder):
        raise ModelError(
            f"{folder} holds adapters next to the weights of θ_0: write plain weights with "
            "spin export --format merged, and set model.path to these"
        )
    if (folder / WEIGHTS_INDEX).exists():
        indexed_files(folder / WEIGHTS_INDEX)
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        raise ModelError(
            f"{folder} holds no safetensors weights"
            + (
                f" (only {', '.join(pickled[:3])}): convert them with save_pretrained"
                if pickled
                else ": set model.path to a folder with config.json and *.safetensors"
            )
        )
