"""Time that a run needs, in seconds, estimated from sizes and from the measured speed of this device.

A forward pass over one token takes 2 · parameters floating-point operations, a backward pass twice as many.
"""

from dataclasses import dataclass

from spin_core.config.base import at
from spin_core.config.run import RunConfig
from spin_core.config.train import TrainConfig
from spin_core.evaluation import suites
from spin_core.preflight.memory import activations
from spin_core.preflight.sizes import (
    Parts,
    Shape,
    Texts,
    pairs_in,
    prompts_at_a_time,
    steps_in,
    tokens_in_a_pass,
    tokens_of_item,
)

_KERNELS = 120
"""Kernels that a layer's forward pass starts, in units of starting one addition. Small models wait for little else."""

_EFFICIENCY = 0.6
"""Speed of a whole network divided by that of its fastest matrix product alone. Measured: 0.4 (small) to 0.8."""

START_SECONDS = 6.0
"""A phase's time besides computing: its process loads torch, and task and files are recorded. Measured: 4 to 6.5."""

_ANSWER_SECONDS = 1e-4
"""Work on one answer outside the network: its random numbers, its text, its row in a file."""


@dataclass(frozen=True)
class Speed:
    """The measured speed of this device."""

    batch_flops: float
    """Floating-point operations per second in products as large as training's."""
    row_flops: float
    """The same in products as small as generation's, with one token per row."""
    bandwidth: float
    """Bytes per second through an operation that computes almost nothing."""
    start: float
    """Seconds to start one operation."""
    attention: float = 0.0
    """Seconds of one layer's attention over one token. In short sequences it takes longer than the products."""
    own_device: bool = False
    """Whether each rank has a device of its own. Ranks on one CPU share it."""


def iteration_seconds(shape: Shape, texts: Texts, config: RunConfig, t: int, speed: Speed) -> Parts:
    """Time of iteration t by phase."""
    pairs = pairs_in(texts, config, t)
    item = tokens_of_item(texts, config.train)
    trained = item * pairs * at(config.train.epochs, t)
    scored = item * pairs * (2 if config.train.anchor_in(t) else 1)
    rows, answers = prompts_at_a_time(config.generate), texts.prompts * config.generate.answers
    devices = max(1, config.generate.speed.workers) if speed.own_device else 1
    return {
        "generating": _generation_seconds(shape, texts, answers, rows, speed) / devices,
        "scoring": _scoring_seconds(shape, scored, config.train, texts.longest, speed),
        "training": training_seconds(shape, trained, config.train, texts.longest, speed),
        "evaluating": evaluation_seconds(shape, texts, config, speed) + frontier_seconds(shape, texts, config, speed),
        # Generating, building pairs, scoring and training are a phase each, and so is each suite.
        "starting phases": (4 + _suites(config)) * START_SECONDS,
    }


def evaluation_seconds(shape: Shape, texts: Texts, config: RunConfig, speed: Speed) -> float:
    """Answers to the held-out prompts, and three passes over them for their scores."""
    row = texts.prompt_tokens + texts.response_tokens
    answers = _generation_seconds(shape, texts, texts.held_out, prompts_at_a_time(config.generate), speed)
    return answers + _pass_seconds(shape, 3 * row * texts.held_out, config.train, texts.longest, speed)


def frontier_seconds(shape: Shape, texts: Texts, config: RunConfig, speed: Speed) -> float:
    """Answers to the held-out prompts at each temperature of a frontier of texts. An exact one takes a single pass."""
    sweeps = 0 if config.evaluate.exact else len(config.evaluate.frontier)
    return sweeps * _generation_seconds(shape, texts, texts.held_out, prompts_at_a_time(config.generate), speed)


def _suites(config: RunConfig) -> int:
    """How many phases score one model (`suite_jobs.evaluate_jobs`)."""
    evaluate = config.evaluate
    of_held_out = (evaluate.self_play or evaluate.exact) + bool(evaluate.frontier)
    return of_held_out + len(list(suites.benchmarks(evaluate))) + len(suites.mt_bench_suites(evaluate))


def other_seconds(shape: Shape, texts: Texts, config: RunConfig, speed: Speed, preferences: int = 0) -> float:
    """Time outside the iterations: θ_0, its SFT if the recipe makes it, and the controls, each trained and scored.

    Args:
        shape: The model.
        texts: The SFT data.
        config: The run's settings.
        speed: The device's speed.
        preferences: Preferences that DPO reads, which are assumed to be as long as the SFT data.
    """
    row, seconds, controls = texts.prompt_tokens + texts.response_tokens, 0.0, config.controls
    if config.trains_base:
        train = config.sft.train
        seconds += training_seconds(shape, row * texts.prompts * at(train.epochs, 0), train, texts.longest, speed)
    if controls.dpo is not None:
        scored = tokens_of_item(texts, config.train) * preferences * (1 + controls.dpo_after)
        seconds += _scoring_seconds(shape, scored, config.train, texts.longest, speed)
    # θ_0 is made, the data are read, and θ_0 is scored, as is each control. DPO also reads and scores its preferences.
    # At other temperatures only held-out prompts are answered.
    scored_models = 1 + controls.trainings
    phases = 2 + config.trains_base + controls.trainings + scored_models * _suites(config)
    phases += len(controls.temperatures) + (2 * (1 + controls.dpo_after) if controls.dpo is not None else 0)
    answered = scored_models + len(controls.temperatures)
    seconds += phases * START_SECONDS + answered * evaluation_seconds(shape, texts, config, speed)
    seconds += scored_models * frontier_seconds(shape, texts, config, speed)
    tokens = control_tokens(texts, config, preferences)
    return seconds + training_seconds(shape, tokens, config.train, texts.longest, speed)


def control_tokens(texts: Texts, config: RunConfig, preferences: int = 0) -> float:
    """Tokens that all controls together train on."""
    row = texts.prompt_tokens + texts.response_tokens
    controls, item, iterations = config.controls, tokens_of_item(texts, config.train), range(config.iterations)
    pairs = sum(steps_in(texts, config, t) for t in iterations) * config.train.batch_size
    spin_tokens = sum(item * pairs_in(texts, config, t) * at(config.train.epochs, t) for t in iterations)
    first, epochs = item * pairs_in(texts, config, 0), at(config.train.epochs, 0)
    # Continued SFT: with equal steps, with equal tokens, and on shares of the prompts, for each learning rate.
    sft_tokens = row * pairs * controls.sft_continued + spin_tokens * controls.sft_tokens
    sft_tokens += row * texts.prompts * epochs * (sum(controls.shares) + 1 if controls.shares else 0)
    tokens = sft_tokens * max(1, len(controls.sft_learning_rate))
    # Iteration 0 on shares of the prompts, and for more epochs.
    tokens += first * epochs * (sum(controls.shares) + sum(controls.longer))
    if controls.dpo is not None:
        dpo_tokens = item * preferences * controls.dpo.epochs
        tokens += (item * pairs if controls.dpo.equal_steps else dpo_tokens) + dpo_tokens * controls.dpo_after
    return tokens


def training_seconds(shape: Shape, tokens: float, config: TrainConfig, longest: int, speed: Speed) -> float:
    """Forward and backward passes over `tokens`. A backward pass costs two forward ones, recomputing one more.

    Ranks with a GPU each divide the work. Ranks on one CPU also divide its cores, which gains nothing.
    """
    passes = 4 if config.gradient_checkpointing else 3
    devices = config.speed.nodes * (config.speed.ranks if speed.own_device else 1)
    return passes / devices * _pass_seconds(shape, tokens, config, longest, speed)


def _scoring_seconds(shape: Shape, tokens: float, config: TrainConfig, longest: int, speed: Speed) -> float:
    """A forward pass over `tokens`, divided among the ranks of one node if each has a GPU."""
    return _pass_seconds(shape, tokens, config, longest, speed) / (config.speed.ranks if speed.own_device else 1)


def _pass_seconds(shape: Shape, tokens: float, config: TrainConfig, longest: int, speed: Speed) -> float:
    """A forward pass over `tokens`: products, attention, memory traffic, and the start of kernels."""
    arithmetic = 2.0 * shape.parameters / (_EFFICIENCY * speed.batch_flops)
    traffic = 1.5 * activations(shape, 1, recomputed=False) / speed.bandwidth
    starting = shape.layers * _KERNELS * speed.start / tokens_in_a_pass(config, longest)
    return tokens * (arithmetic + shape.layers * speed.attention + traffic + starting)


def _generation_seconds(shape: Shape, texts: Texts, prompts: int, rows: int, speed: Speed) -> float:
    """Reading `prompts` prompts, and answering them one token per step, `rows` at a time."""
    per_token = 2.0 * shape.parameters / _EFFICIENCY
    steps = prompts * texts.response_tokens / min(rows, max(1, prompts))
    reading = prompts * texts.prompt_tokens * per_token / speed.batch_flops
    writing = prompts * texts.response_tokens * per_token / speed.row_flops
    return reading + writing + steps * shape.layers * _KERNELS * speed.start + prompts * _ANSWER_SECONDS
