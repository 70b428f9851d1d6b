"""A DeepSpeed configuration, by name or as a file of the user's own, and what this project adds to it.

The named ones are in `infra/deepspeed`. They hold only what DeepSpeed decides: how memory is divided among ranks, and
the sizes of messages. Batch, optimizer, rate and precision are set by the recipe, for every kind of device.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from spin_core.config.train import TrainConfig
from spin_core.errors import ConfigError

MISSING = (
    "training on several ranks needs DeepSpeed, which is not installed: install spin-loop with its extra `deepspeed`, "
    "or set train.speed.ranks and train.speed.nodes to 1 and leave train.speed.deepspeed empty"
)

NAMES = ("zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload")

_RECIPE_SETTINGS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_tokens",
    "gradient_accumulation_steps": "train.micro_batch_tokens",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.lr_schedule",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "data_types": "model.dtype",
    "torch_autocast": "model.dtype",
    "activation_checkpointing": "train.gradient_checkpointing",
}
"""Keys that a DeepSpeed configuration may not have, and the recipe's setting for each."""


def zero_settings(config: TrainConfig, dtype: str) -> dict[str, Any]:
    """The complete configuration for DeepSpeed, for weights of `dtype`."""
    settings = read_settings(config.speed.deepspeed or "zero2")
    is_bfloat16 = dtype == "bfloat16"
    stage = stage_of(settings)
    return {
        **settings,
        # The training loop divides batches into micro-batches, so DeepSpeed sees one, of one sequence.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": is_bfloat16, "check_grad_overflow": is_bfloat16},
        # Without ZeRO, DeepSpeed sums gradients in the weights' own precision only.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if stage else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def read_settings(name: str) -> dict[str, Any]:
    """The configuration with this name, or in this JSON file. Raises `ConfigError` if it is wrong."""
    if name in NAMES:
        # Not by import: another folder of this name may come first on the path.
        text = (files("infra") / "deepspeed" / f"{name}.json").read_text("utf-8")
    else:
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"train.speed.deepspeed {name!r} is not a file that can be read: give the path of one, or "
                f"one of {', '.join(NAMES)}"
            ) from error
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name} is not JSON ({error}): fix it, or name one of {', '.join(NAMES)}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{name} has no JSON object: see infra/deepspeed/zero2.json for one that works")
    for key, setting in _RECIPE_SETTINGS.items():
        if key in settings:
            raise ConfigError(f"{name} sets {key}, which would contradict the recipe: remove it, and set {setting}")
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise ConfigError(f"{name} has no zero_optimization.stage of 0, 1, 2 or 3: see infra/deepspeed/zero2.json")
    return settings


def stage_of(settings: dict[str, Any]) -> int:
    """The stage of ZeRO, 0 to 3."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))
