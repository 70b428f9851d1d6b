"""Loading and saving models and tokenizers: safetensors only, remote code only if asked for."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from spin_core.config import ModelConfig
from spin_core.errors import ModelError, first_line

SMALL = 5_000_000
"""A model of fewer parameters runs on one thread of a CPU: its operations are too short to share, and threads that
wait for each other made it ten times slower on a busy machine."""

BASE, ADAPTERS = "base", "adapters"
"""In the folder of a version that stacks adapters: θ_0's weights, and the adapters by version (see `lora.py`)."""


def device_of(config: ModelConfig) -> torch.device:
    """The device that the configuration names."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device is cuda, but torch sees no GPU: set model.device to auto or cpu")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def load_model(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """The model in a folder, on its device, in evaluation mode, with `config.dtype` weights.

    Adapters that are stacked on the weights are merged into them. A small model sets this process to one thread.
    """
    weights = weights_of(folder)
    check_safetensors(weights)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            weights,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded as a causal language model: {first_line(error)}") from error
    if info["missing_keys"]:
        # from_pretrained would go on with random numbers in their place.
        raise ModelError(
            f"the weights in {folder} lack {', '.join(sorted(info['missing_keys'])[:3])}: copy or fetch the model again"
        )
    model.eval()
    device = device_of(config)
    if device.type == "cpu" and model.num_parameters() < SMALL:
        torch.set_num_threads(1)
    model = model.to(device)
    if is_stacked(folder):
        from spin_core import lora

        lora.merge(model, lora.read(folder))
    return model


def is_stacked(folder: Path) -> bool:
    """Whether a version is a stack of adapters on θ_0's weights."""
    return (folder / BASE).is_dir() and (folder / ADAPTERS).is_dir()


def weights_of(folder: Path) -> Path:
    """The folder that holds a version's weights."""
    return folder / BASE if is_stacked(folder) else folder


def load_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        refuse_code(folder, error)
        raise ModelError(
            f"{folder} holds no tokenizer that loads ({first_line(error)}): set model.tokenizer to a folder that does"
        ) from error
    return tokenizer


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a folder that `from_pretrained` and inference engines load; `weights`, if given, in place of its own."""
    if model.device.type == "cpu":
        # transformers loads DeepSpeed to save, where it is installed, and that else warns that it finds no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def context_length(folder: Path, config: ModelConfig) -> int | None:
    """The longest sequence the model was built for, in tokens; None if its configuration does not say."""
    settings = load_config(folder, config)
    length = getattr(settings, "max_position_embeddings", None) or getattr(settings, "n_positions", None)
    return int(length) if length else None


def load_config(folder: Path, config: ModelConfig) -> Any:
    """The model's own configuration. `ModelError` if there is none that loads."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        refuse_code(folder, error)
        raise ModelError(
            f"{folder} holds no config.json of a model that transformers knows ({first_line(error)}): is it a model?"
        ) from error


def refuse_code(folder: Path, error: Exception) -> None:
    """`ModelError` if that is why something does not load: it wants to run code, and nobody has said that it may."""
    if "trust_remote_code" in str(error):
        raise ModelError(
            f"{folder} needs Python code that comes with it: read that code, then set model.trust_remote_code"
        ) from error


def check_safetensors(folder: Path) -> None:
    """Refuse weights in a format that runs code when it is read."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder: model.path must name a model's folder or a hub name")
    if is_stacked(folder):
        raise ModelError(
            f"{folder} holds adapters beside the weights of θ_0: write plain weights with spin export --format merged, "
            "and set model.path to these"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        raise ModelError(
            f"{folder} holds no safetensors weights"
            + (
                f" (only {', '.join(pickled[:3])}): convert them with save_pretrained"
                if pickled
                else ": is it a model?"
            )
        )
