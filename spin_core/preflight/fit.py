"""The sizes of passes that fit into the free memory, where a setting says `auto`.

They are powers of two, the largest whose peak in the memory model is at most `MARGIN` of what is free. `spin check` and
the phases call the same functions. Beyond `MOST_TOKENS` and `MOST_PROMPTS` a pass gains no speed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spin_core.config.generate import GenerateConfig
from spin_core.config.model import ModelConfig
from spin_core.config.run import RunConfig
from spin_core.config.train import LoraConfig, TrainConfig
from spin_core.preflight import memory
from spin_core.preflight.sizes import TYPICAL_PROMPTS, TYPICAL_TOKENS, Parts, Shape, Texts
from spin_core.runtime.memory.batch_limit import BatchLimit, open_limit
from spin_core.runtime.memory.free import free_memory
from spin_core.runtime.ranks import Ranks
from spin_core.store.jobs import GenerateJob, ScoreJob, TrainJob

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    _Lengths = npt.NDArray[np.int32]

MARGIN = 0.8
"""The share of the free memory that a pass may need by the model's estimate, which is not exact."""

MOST_TOKENS = {"cpu": TYPICAL_TOKENS, "cuda": 2 * TYPICAL_TOKENS}
LEAST_TOKENS = 512
"""The range of `train.micro_batch_tokens`. A single item that is longer has a pass of its own."""

MOST_PROMPTS = {"cpu": TYPICAL_PROMPTS, "cuda": 4 * TYPICAL_PROMPTS}
"""The most of `generate.batch_size`."""


def fit_micro_batch(shape: Shape, config: TrainConfig, longest: int, device: str, free: float) -> int:
    """Tokens in a pass of training.

    Args:
        shape: The model.
        config: Training's settings.
        longest: Tokens of the longest prompt with its response.
        device: `cpu` or `cuda`.
        free: Bytes of memory for each rank.
    """

    def need(tokens: int) -> Parts:
        sized = config.model_copy(update={"micro_batch_tokens": tokens})
        return memory.training_memory(shape, sized, longest, device)

    return _largest(need, _powers(MOST_TOKENS[device], LEAST_TOKENS), free)


def fit_scoring(shape: Shape, longest: int, device: str, free: float) -> int:
    """Tokens in a pass of scoring; the arguments are those of `fit_micro_batch`."""

    def need(tokens: int) -> Parts:
        return memory.scoring_memory(shape, max(tokens, longest), device)

    return _largest(need, _powers(MOST_TOKENS[device], LEAST_TOKENS), free)


def fit_batch_size(shape: Shape, config: GenerateConfig, longest_prompt: int, device: str, free: float) -> int:
    """Prompts that are answered at a time by the transformers engine."""

    def need(rows: int) -> Parts:
        return memory.generation_memory(shape, config.model_copy(update={"batch_size": rows}), longest_prompt)

    return _largest(need, _powers(MOST_PROMPTS[device], 1), free)


def fit_run(config: RunConfig, shape: Shape, texts: Texts, device: str) -> RunConfig:
    """The configuration with the sizes that training and generation would choose now in place of `auto`."""
    train, generate = config.train, config.generate
    free = float(free_memory(device)[0])
    if train.micro_batch_tokens == "auto":
        each = free if device == "cuda" else free / train.speed.ranks
        tokens = fit_micro_batch(shape, train, texts.longest, device, each)
        train = train.model_copy(update={"micro_batch_tokens": tokens})
    if generate.batch_size == "auto":
        each = free if device == "cuda" else free / max(1, generate.speed.workers)
        rows = fit_batch_size(shape, generate, texts.longest_prompt, device, each)
        generate = generate.model_copy(update={"batch_size": rows})
    return config.model_copy(update={"train": train, "generate": generate})


def open_training_limit(job: TrainJob, lengths_NC: "_Lengths", scratch: Path, world: Ranks) -> BatchLimit:
    """The limit of a training's passes; `lengths_NC` are the tokens of each item's prompt and responses."""

    def guess() -> int:
        device, free = _device_and_memory(job.model, job.config.speed.ranks)
        shape = _shape_of(job.start.path, job.model, job.config.lora)
        return fit_micro_batch(shape, job.config, _longest(lengths_NC), device, free)

    return open_limit(job.config.micro_batch_tokens, scratch, guess, "tokens in a pass", world)


def open_scoring_limit(job: ScoreJob, lengths_NC: "_Lengths", scratch: Path, world: Ranks) -> BatchLimit:
    """The limit of a scoring's passes; `lengths_NC` are the tokens of each pair's prompt and responses."""

    def guess() -> int:
        device, free = _device_and_memory(job.model, job.speed.ranks)
        return fit_scoring(_shape_of(job.opponent.path, job.model), _longest(lengths_NC), device, free)

    return open_limit(job.micro_batch_tokens, scratch, guess, "tokens in a pass", world)


def open_generation_limit(job: GenerateJob, scratch: Path) -> BatchLimit:
    """The limit of prompts that a worker answers at a time with transformers."""
    return open_limit(job.config.batch_size, scratch, lambda: prompts_that_fit(job), "prompts at a time")


def prompts_that_fit(job: GenerateJob) -> int:
    """Prompts that a worker of a generation can answer at a time on this machine."""
    from spin_core.data.files.answer_files import RowReader
    from spin_core.data.sequences import token_counts

    prompts = RowReader([job.prompts.path / "train.parquet"], ["prompt_ids"])
    longest = max(int(token_counts(table["prompt_ids"]).max()) for table in prompts.tables())
    device, free = _device_and_memory(job.model, job.config.speed.workers)
    return fit_batch_size(_shape_of(job.opponent.path, job.model), job.config, longest, device, free)


def _largest(need: Callable[[int], Parts], sizes: Iterator[int], free: float) -> int:
    """The first of the falling sizes that fits, or else the last."""
    size = 0
    for size in sizes:
        if sum(need(size).values()) + memory.LIBRARIES <= MARGIN * free:
            break
    return size


def _powers(most: int, least: int) -> Iterator[int]:
    """`most`, half of it, and so on down to `least`."""
    while most >= least:
        yield most
        most //= 2


def _device_and_memory(model: ModelConfig, processes: int) -> tuple[str, float]:
    """This process's device, and its free memory. Processes on one CPU share it."""
    from spin_core.runtime.devices import device_of

    device = device_of(model).type
    free = float(free_memory(device)[0])
    return device, free if device == "cuda" else free / max(1, processes)


def _longest(lengths_NC: "_Lengths") -> int:
    """Tokens of the longest prompt with its longest response."""
    return int((lengths_NC[:, 0] + lengths_NC[:, 1:].max(axis=1)).max())


def _shape_of(folder: Path, model: ModelConfig, lora: LoraConfig | None = None) -> Shape:
    """The sizes of a version, with those of the adapter that trains on it. No weights are read."""
    from spin_core.data.tokenizer import load_config
    from spin_core.models.files import weights_of
    from spin_core.models.skeleton import build_skeleton

    weights = weights_of(folder)
    settings = load_config(weights, model)
    skeleton = build_skeleton(weights, settings, model)
    shape = Shape.of(settings, skeleton.num_parameters(), model.dtype)
    if lora is None:
        return shape
    from spin_core.training.lora import adapted_layers, adapter_parameters

    return replace(shape, adapter=adapter_parameters(skeleton, adapted_layers(skeleton, lora.targets), lora))
