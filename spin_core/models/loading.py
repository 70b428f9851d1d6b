"""Loading a causal language model from a folder."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from spin_core.config.model import ModelConfig
from spin_core.errors import ModelError, first_line
from spin_core.models.files import check_safetensors, is_stacked, weights_of
from spin_core.runtime.devices import device_of

SMALL = 5_000_000
"""A model of fewer parameters runs on one thread of a CPU: its operations are too short to share, and threads that
wait for each other made it ten times slower on a busy machine."""


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
        from spin_core.models import adapters

        adapters.merge(model, adapters.read(folder))
    return model
