"""Loading a causal language model from a folder."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from spin_core.config.model import ModelConfig
from spin_core.errors import ModelError, first_line
from spin_core.models.adapters import merge_adapters, read_adapters
from spin_core.models.files import check_safetensors, is_stacked, weights_of
from spin_core.runtime.devices import device_of

SINGLE_THREAD_PARAMETERS = 5_000_000
"""A model of fewer parameters runs on one thread of a CPU: its operations are too short to share out, and threads that
wait for each other made it ten times slower on a busy machine."""


def load_model(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """The model in a folder, on its device, in evaluation mode, with `config.dtype` weights.

    Stacked adapters are merged into the weights. A small model on the CPU sets this process to one thread.

    Raises:
        ModelError: the folder holds no safetensors weights, or not all, or no causal language model.
        DamagedArtifact: a stacked adapter cannot be read.
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
        raise ModelError(
            f"{folder} cannot be loaded as a causal language model ({first_line(error)}): set model.path to one, or "
            "copy or fetch it again"
        ) from error
    if info["missing_keys"]:
        # from_pretrained would fill them with random numbers.
        raise ModelError(
            f"the weights in {folder} lack {', '.join(sorted(info['missing_keys'])[:3])}: copy or fetch the model again"
        )
    model.eval()
    device = device_of(config)
    if device.type == "cpu" and model.num_parameters() < SINGLE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    model = model.to(device)
    if is_stacked(folder):
        merge_adapters(model, read_adapters(folder))
        if (folder / GENERATION_CONFIG_NAME).exists():  # the version's, which is not next to θ_0's weights
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
