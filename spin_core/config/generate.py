"""Settings of generation."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from spin_core.config.base import Execution, Frozen, NonNegativeFloat, Schedule


class VllmSpeedConfig(Frozen):
    """How much of the machine vLLM uses. Nothing here changes the answers, except for rounding."""

    tensor_parallel: PositiveInt = 1
    """GPUs that share one copy of the model, for a model that does not fit on one."""

    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of a GPU's memory for weights, keys and values."""

    cache_gb: PositiveFloat | None = None
    """GiB for keys and values; None takes what `memory_fraction` leaves on a GPU, and 2 on a CPU."""

    batch_size: PositiveInt = 256
    """Answers generated at the same time, at most."""

    prefix_caching: bool = True
    """Compute what prompts have in common once: a system prompt, or the prompt of several answers."""

    eager: bool = False
    """Do not use CUDA graphs: a faster start, slower steps. On a CPU there are none."""


class VllmConfig(Frozen):
    """vLLM, in its own virtual environment: `make vllm` installs it."""

    python: Execution[str] = ""
    """Its interpreter. Empty: `.venv-vllm/bin/python` next to the virtual environment that has spin-loop."""

    dtype: Literal["model", "float32", "bfloat16", "float16"] = "model"
    """Precision of the computation; `model` takes `model.dtype`."""

    quantization: str = ""
    """A method that vLLM knows (`fp8`, `bitsandbytes`, …). The opponent's answers then come from the rounded model,
    while scores and training use the exact weights. Empty: only what the model's own configuration sets."""

    adapters: Literal["merge", "apply"] = "merge"
    """For versions that stack adapters. `merge`: merge them into a copy of the weights in a temporary folder, which
    gives the same weights that scores and training use. `apply`: let vLLM apply them to θ_0's weights, without copy."""

    max_length: PositiveInt | None = None
    """Longest prompt and answer together, in tokens; None takes the model's own context. A lower value needs less
    memory at the start."""

    speed: Execution[VllmSpeedConfig] = VllmSpeedConfig()
    """How much of the machine it uses."""


def devices_of_engine(engine: str, vllm: VllmConfig) -> int:
    """How many devices one copy of the model takes."""
    return vllm.speed.tensor_parallel if engine == "vllm" else 1


class OpponentsConfig(Frozen):
    """Which versions answer in an iteration. In every case the player starts from θ_t and is measured against it."""

    kind: Literal["current", "mixture", "best"] = "current"
    """`current`: θ_t. `mixture`: each prompt is answered by θ_t or one of the versions before it, chosen by the
    prompt's seed (arXiv 2404.04291). `best`: the best version so far by the gate's metric."""

    history: PositiveInt = 3
    """With `mixture`: how many versions, including θ_t."""


class RayConfig(Frozen):
    """Workers on a Ray cluster whose machines see the runs folder under the same path."""

    address: str
    """The cluster's address: `auto` on one of its machines, otherwise `ray://HOST:10001`."""

    workers: PositiveInt = 1
    """How many workers run there, at most."""

    gpus: NonNegativeFloat = 1.0
    """GPUs of each worker. Set 0 on a cluster without GPUs, and `vllm.speed.tensor_parallel` if that is more than 1."""


class GenerateSpeedConfig(Frozen):
    """Which workers generate. Nothing here changes the answers, except for rounding if devices or threads differ."""

    workers: Annotated[int, Field(ge=0)] = 1
    """Processes on this machine, one for each device; on a CPU they share the cores. 0: only workers on other machines
    answer. They join with `python -m spin_core.phases.join JOB`."""

    ray: RayConfig | None = None
    """Also start workers on a Ray cluster (extra `ray`); None starts none."""


class GenerateConfig(Frozen):
    """How the opponent answers."""

    opponents: OpponentsConfig = OpponentsConfig()
    """Which versions answer."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What runs the model; `auto` takes vLLM if this machine has a GPU and vLLM's environment, else transformers."""

    temperature: Schedule[PositiveFloat] = 1.0
    """Sampling temperature. The paper's theory assumes samples of the opponent itself, that is 1."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: sample from the smallest set of tokens with this total probability; 1 takes all."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the k likeliest tokens; 0 takes all."""

    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Drop tokens less likely than this fraction of the likeliest token's probability; 0 takes all. It is applied
    before top_k and top_p."""

    repetition_penalty: PositiveFloat = 1.0
    """Divide the logits of tokens that already occur in the prompt or the answer by this (negative logits are
    multiplied)."""

    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end an answer. The answer keeps the tokens up to the one that completes such a text."""

    stop_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Token ids that end an answer, in addition to those of the chat format."""

    answers: PositiveInt = 1
    """Answers to each prompt, each with its own seed."""

    max_new_tokens: PositiveInt = 256
    """Longest response in tokens, on both sides: human responses are cut to it too."""

    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Prompts answered at a time by transformers; vLLM has `vllm.speed.batch_size`. `auto` takes what fits into the
    free memory, at most 128 on a CPU and 512 on a GPU. It is halved when memory runs out, which changes only
    rounding."""

    vllm: VllmConfig = VllmConfig()
    """How vLLM runs."""

    shard_size: PositiveInt = 512
    """Prompts in a shard. A shard is published as a whole, so a worker that is killed loses at most one."""

    speed: Execution[GenerateSpeedConfig] = GenerateSpeedConfig()
    """Which workers generate."""
