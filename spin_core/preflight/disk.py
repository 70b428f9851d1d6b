"""Disk that a run needs, in bytes: published versions, checkpoints, texts."""

from spin_core.config.run import RunConfig
from spin_core.config.train import TrainConfig
from spin_core.preflight.memory import checkpoint_bytes
from spin_core.preflight.sizes import Shape, Texts, pairs_in

_BYTES_PER_TOKEN = 8
"""A token in a Parquet file: its id, and the text that it stands for."""


def model_disk(shape: Shape) -> int:
    """A published version."""
    return shape.parameters * shape.itemsize


def checkpoint_disk(shape: Shape, config: TrainConfig, steps: int) -> int:
    """The most that checkpoints need while an iteration trains (`checkpoint`). Afterwards they are removed.

    The next checkpoint is written before the oldest is removed. The last step has none, except of an adapter. With
    `keep_best` there are two more: the best one that the last checkpoint refers to, and a better one since.
    """
    checkpoint = checkpoint_bytes(shape, config)
    saved = (steps - 1) // config.save_every + bool(shape.adapter)
    best = min(2, -(-steps // config.evaluate_every)) if config.keep_best else 0
    return checkpoint * (min(config.keep_checkpoints + 1, saved) + best)


def text_disk(texts: Texts, config: RunConfig, t: int) -> float:
    """Generations, pairs and held-out answers of iteration t."""
    pair = texts.prompt_tokens + 2 * texts.response_tokens
    return _BYTES_PER_TOKEN * pair * (texts.prompts + pairs_in(texts, config, t) + 2 * texts.held_out)
