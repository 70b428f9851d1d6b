"""Memory that training and generation need, in bytes, estimated from sizes: near enough to say what cannot fit.

Each term follows the code that is named next to it. Measured against training on a CPU, the sums were between 6 % too
high and 25 % too low, hence `_SLACK`.
"""

from dataclasses import replace

from spin_core.config.generate import GenerateConfig
from spin_core.config.train import TrainConfig
from spin_core.preflight.sizes import FLOAT32, Parts, Shape, prompts_at_a_time, tokens_in_a_pass

LIBRARIES = 450 * 2**20
"""Memory of Python, torch and transformers before any weight is loaded."""

_SLACK = 1.25
"""Memory that allocators hold, divided by memory in use."""


def training_memory(shape: Shape, config: TrainConfig, longest: int, device: str = "cpu") -> Parts:
    """The peak of `train` on each rank: in the backward pass, where activations, logits and gradients meet.

    ZeRO divides the optimizer's states and masters (stage 1), gradients (2) and weights (3) among the ranks. What it
    offloads is not on the GPU. On a CPU offloading changes nothing, because both are one memory.

    Args:
        shape: The model.
        config: Training's settings.
        longest: Tokens of the longest prompt with its response.
        device: `cpu` or `cuda`.
    """
    _, stage = ranks_and_stage(config, shape)
    weights, gradients, states = _held_by_a_rank(shape, config)
    offloaded = offloads(config, shape) if device == "cuda" else {}
    if "optimizer" in offloaded:
        # The float32 sums of the gradients are offloaded with the states. Only the gradients of one pass stay.
        states, gradients = 0.0, gradients * shape.itemsize / _gradient_bytes(shape, config)
    if "param" in offloaded:
        # The layer in use and the one that is being fetched stay, or the vocabulary's matrix if that is larger.
        vocabulary = shape.vocabulary * shape.hidden
        layers = 2 * (shape.parameters - vocabulary) / shape.layers
        weights = min(shape.parameters, max(vocabulary, layers)) * shape.itemsize
    tokens, whole = tokens_in_a_pass(config, longest), float(shape.parameters * shape.itemsize)
    parts = {
        "weights, gradients and optimizer": weights + gradients + states,
        "activations": _SLACK * activations(shape, tokens, config.gradient_checkpointing, config.speed.compile),
        "logits": _SLACK * _logits(shape, tokens, config, device),
    }
    if holds_opponent(config, shape):
        parts["the opponent"] = whole
    saved = checkpoint_memory(shape, config, device) / config.speed.ranks if device == "cpu" else 0.0
    if (more := saved - parts["activations"] - parts["logits"]) > 0:
        parts["copies for a checkpoint, beyond these"] = more  # when it is saved, there are no activations
    if stage == 3 and (more := whole - sum(parts.values())) > 0:
        parts["the whole model, before it is shared out"] = more  # `zero.py` loads it before it divides it
    return parts


def scoring_memory(shape: Shape, tokens: int, device: str = "cpu") -> Parts:
    """The peak of `score`: the weights, one layer's tensors, the states of all tokens, and a chunk of logits."""
    from spin_core.models.vocabulary_projection import CHUNK_LOGITS

    states = 2 * tokens * shape.hidden * shape.itemsize
    chunk = min(CHUNK_LOGITS[device], tokens * shape.vocabulary) * (2 * FLOAT32 + shape.itemsize)
    layer = activations(replace(shape, layers=1), tokens, recomputed=False)
    return {
        "weights": float(shape.parameters * shape.itemsize),
        "activations": _SLACK * (states + layer),
        "logits": _SLACK * chunk,
    }


def generation_memory(shape: Shape, config: GenerateConfig, longest_prompt: int) -> Parts:
    """The peak of `generate`: the weights, the keys and values of a batch, and its prompts and logits.

    keys and values = rows · columns · layers · 2 · key width · bytes; the columns are those of `kv_cache`.
    """
    rows, longest = prompts_at_a_time(config), longest_prompt + config.max_new_tokens
    columns = longest + max(64, longest // 2)
    prompts = rows * longest_prompt * shape.itemsize * (4 * shape.hidden + 3 * shape.intermediate)
    return {
        "weights": float(shape.parameters * shape.itemsize),
        "keys and values": float(rows * columns * shape.layers * 2 * shape.key_width * shape.itemsize),
        "temporary tensors": _SLACK * (prompts + 4 * rows * shape.vocabulary * FLOAT32),
    }


def offloaded_memory(shape: Shape, config: TrainConfig) -> float:
    """The machine's own memory, next to its GPUs', that all its ranks offload to."""
    weights, gradients, states = _held_by_a_rank(shape, config)
    offloaded = offloads(config, shape)
    sums = gradients * FLOAT32 / _gradient_bytes(shape, config)
    each = (states + sums) * (offloaded.get("optimizer") == "cpu") + weights * (offloaded.get("param") == "cpu")
    return config.speed.ranks * each


def checkpoint_bytes(shape: Shape, config: TrainConfig) -> int:
    """A checkpoint: the float32 weights that are trained, and the optimizer's states."""
    return shape.trained * FLOAT32 * (1 + optimizer_states(config))


def checkpoint_memory(shape: Shape, config: TrainConfig, device: str = "cpu") -> float:
    """The machine's own memory that its ranks take together to save a checkpoint, or to resume from one.

    What is on a GPU is copied before it is written, all tensors of a rank at once, and so is what DeepSpeed divides.
    Only one CPU without DeepSpeed writes from where the tensors are.
    """
    copies = device == "cuda" or not _without_deepspeed(config, shape)
    return checkpoint_bytes(shape, config) / config.speed.nodes if copies else 0.0


def offloads(config: TrainConfig, shape: Shape) -> dict[str, str]:
    """What DeepSpeed keeps outside the GPU: `optimizer` and `param`, each with `cpu` or `nvme`."""
    from spin_core.training.deepspeed_config import zero_settings

    stage = ranks_and_stage(config, shape)[1]
    if not stage:
        return {}
    settings = zero_settings(config, shape.dtype)["zero_optimization"]
    devices = {what: (settings.get(f"offload_{what}") or {}).get("device") or "none" for what in ("optimizer", "param")}
    # Weights can be offloaded only where they are divided among the ranks, in stage 3.
    return {
        what: str(device)
        for what, device in devices.items()
        if device != "none" and (what == "optimizer" or stage == 3)
    }


def saves_memory(shape: Shape, config: TrainConfig, deepspeed: str, longest: int, device: str) -> bool:
    """Whether training needs less than 90 % of its memory with another configuration of DeepSpeed."""
    speed = config.speed.model_copy(update={"deepspeed": deepspeed})
    now, then = (
        sum(training_memory(shape, settings, longest, device).values())
        for settings in (config, config.model_copy(update={"speed": speed}))
    )
    return then < 0.9 * now


def holds_opponent(config: TrainConfig, shape: Shape) -> bool:
    """Whether training holds the opponent as a second model next to the player."""
    return not config.speed.cached_scores and config.loss != "sft" and not shape.adapter


def ranks_and_stage(config: TrainConfig, shape: Shape) -> tuple[int, int]:
    """The number of ranks that train together, and the stage of ZeRO by which they share memory."""
    from spin_core.training.deepspeed_config import stage_of, zero_settings

    ranks = config.speed.ranks * config.speed.nodes
    if ranks == 1 and not config.speed.deepspeed:
        return 1, 0
    return ranks, stage_of(zero_settings(config, shape.dtype))


def activations(shape: Shape, tokens: int, recomputed: bool, compiled: bool = False) -> float:
    """What a decoder like Llama keeps for the backward pass.

    For each token and layer: the inputs of two norms in float32, and their outputs before and after the gain; queries,
    keys, values, and the output of attention before and after its layout changes; four widths of the feed-forward
    layer. Compiled layers recompute what is cheap: they keep the inputs of the norms, and two widths of the
    feed-forward layer. Recomputed layers keep only their inputs, except for the one that is being computed.
    """
    itemsize = shape.itemsize
    norms = shape.hidden * (2 * itemsize if compiled else 2 * FLOAT32 + 4 * itemsize)
    attention = itemsize * (3 * shape.query_width + 4 * shape.key_width)
    layer = norms + attention + (2 if compiled else 4) * itemsize * shape.intermediate
    return tokens * (shape.layers * shape.hidden * itemsize + layer if recomputed else shape.layers * layer)


def _logits(shape: Shape, tokens: int, config: TrainConfig, device: str) -> float:
    """One chunk of logits with its copies (`vocabulary_projection`), and the projection's gradient of one pass.

    One device without DeepSpeed adds that gradient directly to the sum of the batch (`direct_gradients`).
    """
    from spin_core.models.vocabulary_projection import CHUNK_LOGITS

    copies = (1 if config.speed.response_logits else 2) * FLOAT32 + (0 if shape.itemsize == FLOAT32 else shape.itemsize)
    chunk = tokens * shape.vocabulary
    if config.speed.response_logits:
        chunk = min(CHUNK_LOGITS[device], chunk)
        if config.speed.compile:
            copies = shape.itemsize
    direct = config.speed.response_logits and _without_deepspeed(config, shape)
    return chunk * copies + (0 if direct else shape.vocabulary * shape.hidden * (FLOAT32 + shape.itemsize))


def _held_by_a_rank(shape: Shape, config: TrainConfig) -> tuple[float, float, float]:
    """Bytes of a rank's weights, gradients, and optimizer states with masters, on whichever device they are."""
    ranks, stage = ranks_and_stage(config, shape)
    masters = 0 if shape.itemsize == FLOAT32 else FLOAT32
    states = shape.trained * (masters + FLOAT32 * optimizer_states(config)) / (ranks if stage >= 1 else 1)
    gradients = shape.trained * _gradient_bytes(shape, config) / (ranks if stage >= 2 else 1)
    return shape.parameters * shape.itemsize / (ranks if stage >= 3 else 1), gradients, states


def _gradient_bytes(shape: Shape, config: TrainConfig) -> int:
    """Bytes of a weight's gradient: its sum in float32, and in half precision also the gradient of one pass.

    DeepSpeed keeps the latter in the weights' precision. One device without it frees each as soon as it is added.
    """
    return FLOAT32 + (0 if shape.itemsize == FLOAT32 or _without_deepspeed(config, shape) else shape.itemsize)


def _without_deepspeed(config: TrainConfig, shape: Shape) -> bool:
    """Whether one device trains without DeepSpeed."""
    return ranks_and_stage(config, shape) == (1, 0) and not config.speed.deepspeed


def optimizer_states(config: TrainConfig) -> int:
    """Numbers that the optimizer keeps for each weight, next to its master (`optim.make_optimizer`)."""
    return 2 if config.optimizer == "adamw" else 1
