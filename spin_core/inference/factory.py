"""Create the engine that the configuration names."""

import logging
from collections.abc import Sequence
from pathlib import Path

import transformers

from spin_core.config.generate import GenerateConfig
from spin_core.config.model import ModelConfig
from spin_core.data.tokenizer import load_tokenizer
from spin_core.inference.engine import Engine
from spin_core.inference.sampling import Sampling
from spin_core.inference.transformers_engine import transformers_engine
from spin_core.models.loading import load_model

log = logging.getLogger("spin_core")


def make_engine(folder: Path, model: ModelConfig, stop_ids: Sequence[int], config: GenerateConfig, t: int) -> Engine:
    """The configured engine with the version in `folder`, as it samples in iteration `t`. It loads the weights."""
    if config.engine == "vllm":
        from spin_core.inference.vllm_engine import VllmEngine

        return VllmEngine(folder, model, stop_ids, Sampling.of(config, t), config.vllm)
    log.info(
        "answering with transformers %s, at most %d prompts at a time", transformers.__version__, config.batch_size
    )
    return transformers_engine(load_model(folder, model), load_tokenizer(folder, model), stop_ids, config, t)
