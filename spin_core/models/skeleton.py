"""A model without values: built from its configuration on the meta device, and compared with the weights on disk."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from spin_core.config.model import ModelConfig
from spin_core.errors import ModelError, first_line, library_errors

_MOST_CALLS = 1_000_000
"""The most operations on tensors that building a model may take. The largest models need a tenth of it."""


class Mismatch(NamedTuple):
    """How a checkpoint differs from the model that is to be filled from it."""

    missing: list[str]
    """Weights of the model that the checkpoint lacks."""
    other_shape: list[str]
    """Weights of another shape, each with both shapes."""
    unused: list[str]
    """Weights of the checkpoint that the model does not have."""


def build_skeleton(source: Path, settings: Any, config: ModelConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: shapes, but no values.

    Raises:
        ModelError: it is not a causal language model, or cannot be built.
    """

    def failed(error: BaseException) -> ModelError:
        return ModelError(
            f"{source} is not a causal language model that can be built ({first_line(error)}): "
            "correct its config.json, or set model.path to another model"
        )

    with library_errors(failed), torch.device("meta"), _Budget():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(settings), trust_remote_code=config.trust_remote_code
        )
        if model.get_input_embeddings().num_embeddings < 1:
            raise ValueError("it embeds no tokens")
    return model


def compare(skeleton: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Mismatch:
    """How a checkpoint differs from a model, by transformers' own rules for names of weights.

    Args:
        skeleton: the model.
        tensors: the checkpoint's weights by name, on the meta device.
    """
    verbosity, has_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        _, info = type(skeleton).from_pretrained(
            None,
            config=copy.deepcopy(skeleton.config),
            state_dict=dict(tensors),
            dtype=torch.float32,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bar:
            transformers_logging.enable_progress_bar()
    shapes = [
        f"{name} is {_shape(stored)} where the configuration says {_shape(wanted)}"
        for name, stored, wanted in sorted(info["mismatched_keys"])
    ]
    return Mismatch(sorted(info["missing_keys"]), shapes, sorted(info["unexpected_keys"]))


class _Budget(TorchFunctionMode):
    """Raises `ValueError` after `_MOST_CALLS` operations: a configuration of absurd sizes would build for hours."""

    def __init__(self) -> None:
        super().__init__()
        self.left = _MOST_CALLS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it has more layers than any model")
        return func(*args, **(kwargs or {}))


def _shape(shape: Any) -> str:
    return " x ".join(str(size) for size in shape)
