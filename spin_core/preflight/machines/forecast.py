"""What a run costs on a machine that is not here: what fits into its memory, hours, GPU hours, and money."""

import math
from dataclasses import dataclass, replace

from spin_core.config.run import RunConfig
from spin_core.config.train import LoraConfig, TrainConfig
from spin_core.preflight import fit, memory
from spin_core.preflight.machines.profiles import Machine
from spin_core.preflight.machines.work import Work, adapter_weights, cached_bytes, communication
from spin_core.preflight.sizes import (
    FLOAT32,
    Parts,
    Shape,
    Texts,
    pairs_in,
    prompts_at_a_time,
    sides,
    steps_in,
    tokens_of_item,
)
from spin_core.preflight.times.timing import START_SECONDS

_VLLM_SHARE = 0.9
"""The share of the memory that vLLM takes (`generate.vllm.speed.memory_fraction`)."""

_LEAST_ROWS = 8
"""The fewest answers at a time for which a model is said to fit."""


@dataclass(frozen=True)
class Option:
    """One way of training on the machine, and whether it fits."""

    lora: bool
    stage: int
    """ZeRO's stage; 0 on one GPU, which trains without DeepSpeed."""
    recomputes: bool
    """Whether activations are recomputed (`train.gradient_checkpointing`)."""
    tokens: int
    """Tokens in a pass."""
    bytes_each: float
    """The peak of memory on each GPU."""
    fits: bool
    host_bytes: float
    """What a node needs of its own memory to save a checkpoint."""
    iterations: tuple[Parts, ...] = ()
    """Seconds of each iteration by phase; empty if it does not fit."""

    @property
    def seconds(self) -> float:
        """Seconds of all iterations."""
        return sum(sum(parts.values()) for parts in self.iterations)

    def sets(self, machine: Machine, config: RunConfig) -> list[str]:
        """The settings of `spin run` that choose it."""
        speed, train = config.train.speed, config.train
        wanted = {
            "train.speed.ranks": (machine.each, speed.ranks),
            "train.speed.nodes": (machine.nodes, speed.nodes),
            "train.speed.deepspeed": (f"zero{self.stage}" if machine.gpus > 1 else "", speed.deepspeed),
            "train.gradient_checkpointing": (self.recomputes, train.gradient_checkpointing),
            "generate.speed.workers": (machine.each, config.generate.speed.workers),
        }
        sets = [f"{name}={_plain(value)}" for name, (value, have) in wanted.items() if value != have]
        if machine.nodes > 1 and not speed.rendezvous:
            sets.append("train.speed.rendezvous=HOST:PORT")
        if self.lora and train.lora is None:
            sets.append(f"train.lora.rank={LoraConfig().rank}")
        return sets


@dataclass(frozen=True)
class Forecast:
    """What a run needs on a machine."""

    machine: Machine
    shape: Shape
    texts: Texts
    options: tuple[Option, ...]
    tensor_parallel: int
    """GPUs that share one copy of the model in generation; 0 if it fits on no number of GPUs of a node."""

    def cheapest(self, *, lora: bool) -> Option | None:
        """The option that fits and takes the least time, with all weights or with adapters; None if none fits."""
        fitting = [option for option in self.options if option.fits and option.lora == lora]
        return min(fitting, key=lambda option: option.seconds, default=None)


def forecast(config: RunConfig, machine: Machine, shape: Shape, texts: Texts) -> Forecast:
    """Estimate every stage of ZeRO, with all weights and with adapters, and the hours of what fits.

    On a GPU without bfloat16 the run is estimated in float32.
    """
    if not machine.gpu.flops(shape.dtype):
        shape = replace(shape, itemsize=FLOAT32)
    stages = range(4) if machine.gpus > 1 else range(1)
    parallel = _tensor_parallel(machine, shape, texts)
    loras = [True] if config.train.lora else [False, True]
    options = tuple(
        _option(config, machine, shape, texts, parallel, lora=lora, stage=stage) for lora in loras for stage in stages
    )
    return Forecast(machine, shape, texts, options, parallel)


def _option(
    config: RunConfig, machine: Machine, shape: Shape, texts: Texts, parallel: int, *, lora: bool, stage: int
) -> Option:
    """One way of training: without recomputing if that fits, else with it."""
    rank = (config.train.lora or LoraConfig()).rank
    shape = replace(shape, adapter=adapter_weights(shape, rank)) if lora else shape
    candidates = [_sized(config.train, machine, shape, texts, stage, recomputes) for recomputes in (False, True)]
    train, need = next(
        ((train, need) for train, need in candidates if need <= fit.MARGIN * machine.gpu.memory), candidates[-1]
    )
    fits = need <= fit.MARGIN * machine.gpu.memory
    assert isinstance(train.micro_batch_tokens, int), "chosen above"
    host = memory.checkpoint_memory(shape, train, "cuda")
    option = Option(lora, stage, train.gradient_checkpointing, train.micro_batch_tokens, need, fits, host)
    if not fits or not parallel:
        return replace(option, fits=False)
    config = config.model_copy(update={"train": train})
    parts = tuple(_iteration(config, machine, shape, texts, t, stage, parallel) for t in range(config.iterations))
    return replace(option, iterations=parts)


def _sized(
    train: TrainConfig, machine: Machine, shape: Shape, texts: Texts, stage: int, recomputes: bool
) -> tuple[TrainConfig, float]:
    """Training's settings for the machine with the largest pass that fits, and the memory that it takes."""
    speed = train.speed.model_copy(
        update={
            "ranks": machine.each,
            "nodes": machine.nodes,
            "deepspeed": f"zero{stage}" if machine.gpus > 1 else "",
        }
    )
    train = train.model_copy(update={"gradient_checkpointing": recomputes, "speed": speed})
    if train.micro_batch_tokens == "auto":
        tokens = fit.fit_micro_batch(shape, train, texts.longest, "cuda", machine.gpu.memory)
        train = train.model_copy(update={"micro_batch_tokens": tokens})
    need = sum(memory.training_memory(shape, train, texts.longest, "cuda").values()) + memory.LIBRARIES
    return train, need


def _iteration(
    config: RunConfig, machine: Machine, shape: Shape, texts: Texts, t: int, stage: int, parallel: int
) -> Parts:
    """Seconds of iteration t by phase."""
    gpu, train = machine.gpu, config.train
    work = Work(shape, gpu.flops(shape.dtype), gpu.bandwidth, compiled=train.speed.compile)
    scored = pairs_in(texts, config, t) * (2 if train.anchor_in(t) else 1)
    scoring = _pass_of_item(work, texts, train)
    copies = machine.nodes * (machine.each // parallel)
    answers = -(-texts.prompts * config.generate.answers // copies)

    def generation(number: int) -> float:
        return sum(_generation(config, machine, work, texts, number, parallel).values())

    return {
        "generating": START_SECONDS + generation(answers),
        "scoring": START_SECONDS + scored * scoring / machine.each,
        "training": START_SECONDS + steps_in(texts, config, t) * step_seconds(work, texts, train, machine, stage),
        "evaluating": START_SECONDS + generation(texts.held_out) + 3 * texts.held_out * scoring,
    }


def step_seconds(work: Work, texts: Texts, train: TrainConfig, machine: Machine, stage: int) -> float:
    """Seconds of a training step on each of the machine's GPUs."""
    shape, frozen = work.shape, work.shape.adapter > 0
    items = train.batch_size / machine.gpus
    tokens, outputs = items * tokens_of_item(texts, train), items * sides(train) * texts.response_tokens
    length = texts.prompt_tokens + texts.response_tokens
    assert isinstance(train.micro_batch_tokens, int), "a forecast chooses a number"
    passes = math.ceil(tokens / train.micro_batch_tokens)
    again = train.gradient_checkpointing + memory.holds_opponent(train, shape)
    computing = (1 + again) * work.forward(tokens, outputs, length)
    computing += work.backward(tokens, outputs, length, frozen=frozen)
    shared = machine.gpus if stage else 1
    moving = passes * work.sum_gradients() + work.optimizer(memory.optimizer_states(train), shared)
    exchanged = communication(shape, ranks=machine.gpus, stage=stage, passes=passes, link=machine.link)
    return max(computing, passes * (3 + again) * work.starting) + moving + exchanged


def _pass_of_item(work: Work, texts: Texts, train: TrainConfig) -> float:
    """Seconds that a prompt with its responses takes in a full forward pass."""
    items = 64  # a pass that is large enough, so that starting kernels hardly counts
    tokens, outputs = items * tokens_of_item(texts, train), items * sides(train) * texts.response_tokens
    return work.forward(tokens, outputs, texts.prompt_tokens + texts.response_tokens) / items


def _generation(config: RunConfig, machine: Machine, work: Work, texts: Texts, answers: int, parallel: int) -> Parts:
    """Seconds in which one copy of the model reads the prompts and writes the answers.

    A copy on several GPUs has their memory and speed together. Rows are refilled as answers end.
    """
    graphs = config.generate.engine != "transformers"
    whole = replace(work, flops=parallel * work.flops, bandwidth=parallel * work.bandwidth)
    most = config.generate.vllm.speed.batch_size if graphs else prompts_at_a_time(config.generate)
    rows = min(answers, most, _rows_in_memory(machine, work.shape, texts, parallel))
    length = texts.prompt_tokens + texts.response_tokens / 2
    reading = answers * texts.prompt_tokens
    return {
        "prompts": whole.forward(reading, answers, texts.prompt_tokens),
        "answers": answers * texts.response_tokens / rows * whole.decode(rows, length, graphs=graphs),
    }


def _tensor_parallel(machine: Machine, shape: Shape, texts: Texts) -> int:
    """GPUs that one copy of the model takes in generation: the fewest, a power of two; 0 if a node is too small."""
    parallel = 1
    while parallel <= machine.each:
        if _rows_in_memory(machine, shape, texts, parallel) >= _LEAST_ROWS:
            return parallel
        parallel *= 2
    return 0


def _rows_in_memory(machine: Machine, shape: Shape, texts: Texts, parallel: int) -> int:
    """Answers of the greatest length whose keys and values fit next to the weights in vLLM's share of the memory."""
    free = _VLLM_SHARE * parallel * machine.gpu.memory - shape.parameters * shape.itemsize
    return max(0, int(free / (texts.longest * cached_bytes(shape))))


def _plain(value: object) -> str:
    """A setting's value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)
