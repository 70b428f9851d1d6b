"""Settings of generation."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from spin_core.config.base import Execution, Frozen, NonNegativeFloat, Schedule


class VllmSpeedConfig(Frozen):
    """What vLLM may take of the machine. Nothing here changes what is said, but for rounding."""

    tensor_parallel: PositiveInt = 1
    """GPUs that hold one copy of the model together, for a model that does not fit on one."""

    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Part of a GPU's memory for weights, keys and values."""

    cache_gb: PositiveFloat | None = None
    """GiB for keys and values; None takes what `memory_fraction` leaves on a GPU, and 2 on a CPU."""

    batch_size: PositiveInt = 256
    """Answers in flight at a time, at most."""

    prefix_caching: bool = True
    """Compute once what prompts have in common: a system prompt, or the prompt of several answers."""

    eager: bool = False
    """Skip CUDA graphs: a faster start, slower steps. A CPU has none."""


class VllmConfig(Frozen):
    """vLLM, in a virtual environment of its own: `make vllm` installs it."""

    python: Execution[str] = ""
    """Its interpreter. Empty: `.venv-vllm/bin/python` beside the virtual environment that Spin runs in."""

    dtype: Literal["model", "float32", "bfloat16", "float16"] = "model"
    """Precision in which it computes; `model` is `model.dtype`."""

    quantization: str = ""
    """A method that vLLM knows (`fp8`, `bitsandbytes`, …). The opponent's answers are then the rounded model's, while
    scores and training take the weights as they are. Empty: none beyond what the model's own configuration says."""

    adapters: Literal["merge", "apply"] = "merge"
    """For versions that stack adapters: merge them into a copy of the weights in a temporary folder, the very weights
    that scores and training see; or let vLLM apply them beside θ_0's, which takes no space on disk."""

    max_length: PositiveInt | None = None
    """Longest prompt and answer together, in tokens; None takes the model's own context. A lower one needs less memory
    to start."""

    speed: Execution[VllmSpeedConfig] = VllmSpeedConfig()
    """What it may take of the machine."""


def devices_of_engine(engine: str, vllm: VllmConfig) -> int:
    """How many devices one copy of the model takes."""
    return vllm.speed.tensor_parallel if engine == "vllm" else 1


class OpponentsConfig(Frozen):
    """Which versions answer in an iteration. What the player starts from and is measured against stays θ_t."""

    kind: Literal["current", "mixture", "best"] = "current"
    """`current`: θ_t. `mixture`: each prompt is answered by one of θ_t and the versions that it came from, by its seed
    (arXiv 2404.04291). `best`: the version that is best so far by the gate's metric."""

    history: PositiveInt = 3
    """`mixture`: how many versions, θ_t among them."""


class RayConfig(Frozen):
    """Workers on a Ray cluster whose machines see the runs folder under the same path."""

    address: str
    """Of the cluster: `auto` on one of its machines, else `ray://HOST:10001`."""

    workers: PositiveInt = 1
    """How many workers run there, at most."""

    gpus: NonNegativeFloat = 1.0
    """GPUs of each worker. 0 on a cluster without any; as many as `vllm.speed.tensor_parallel` where that is more."""


class GenerateSpeedConfig(Frozen):
    """Who generates. Nothing here changes what is said, but for rounding where devices or threads differ."""

    workers: Annotated[int, Field(ge=0)] = 1
    """Processes on this machine, one a device; on a CPU they share the cores. 0: it only waits for workers elsewhere,
    which join with `python -m spin_core.phases.join JOB`."""

    ray: RayConfig | None = None
    """Workers on a Ray cluster too (extra `ray`); None starts none."""


class GenerateConfig(Frozen):
    """How the opponent answers."""

    opponents: OpponentsConfig = OpponentsConfig()
    """Who answers."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What runs the model; `auto` is vLLM where this machine has a GPU and vLLM's environment, else transformers."""

    temperature: Schedule[PositiveFloat] = 1.0
    """Sampling temperature. The theory holds for samples of the opponent itself, which is 1."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the smallest set of tokens with so much probability; 1 takes all."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the so many likeliest tokens; 0 takes all."""

    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Leave out tokens less likely than so many times the likeliest; 0 takes all. It cuts before top_k and top_p."""

    repetition_penalty: PositiveFloat = 1.0
    """Divide the logits of tokens that the prompt or the answer has already by this (multiply negative ones)."""

    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end an answer, which keeps the tokens up to the one that completes such a text."""

    stop_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Token ids that end an answer, beside those of the chat format."""

    answers: PositiveInt = 1
    """Answers to each prompt, each with a seed of its own."""

    max_new_tokens: PositiveInt = 256
    """Longest response in tokens, on both sides: a human response is cut to it too."""

    batch_size: PositiveInt = 32
    """Prompts answered at a time by transformers; vLLM has `vllm.speed.batch_size`."""

    vllm: VllmConfig = VllmConfig()
    """How vLLM runs."""

    shard_size: PositiveInt = 512
    """Prompts in a shard. A shard is published whole, so a worker that is killed loses at most one."""

    speed: Execution[GenerateSpeedConfig] = GenerateSpeedConfig()
    """Who generates."""
