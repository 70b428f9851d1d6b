"""Create the engine that the configuration names.

A module of its own, since it knows all engines and they do not know each other.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import transformers

from spin_core.config.generate import GenerateConfig
from spin_core.config.model import ModelConfig
from spin_core.data.tokenizer import load_tokenizer
from spin_core.inference.engine import Engine
from spin_core.inference.sampling import Sampling
from spin_core.inference.transformers_engine import TransformersEngine
from spin_core.models.loading import load_model

log = logging.getLogger("spin_core")


def make_engine(
    folder: Path,
    model: ModelConfig,
    stop_ids: Sequence[int],
    config: GenerateConfig,
    t: int,
    stop_strings: Sequence[str] = (),
) -> Engine:
    """Load the version in `folder` into the configured engine, with the sampling of iteration `t`.

    `stop_ids` and `stop_strings` are the chat format's, in addition to those of the configuration.
    """
    if config.engine == "vllm":
        from spin_core.inference.vllm_engine import VllmEngine  # only vLLM's environment has vLLM

        return VllmEngine(folder, model, stop_ids, Sampling.of(config, t, stop_strings), config.vllm)
    engine = TransformersEngine.from_config(
        load_model(folder, model), load_tokenizer(folder, model), stop_ids, config, t, stop_strings
    )
    log.info(
        "answering with transformers %s, at most %d prompts at a time", transformers.__version__, engine.batch_size
    )
    return engine
