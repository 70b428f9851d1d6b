"""What a run will need, from sizes alone: memory, disk, arithmetic. Near enough to say what cannot fit, no nearer.

Sizes are in bytes, lengths in tokens. Each term follows the code that it speaks of, which is named beside it.
Measured against training on a CPU, the sums came out between 6 % too high and 25 % too low: hence `SLACK`.
"""

from dataclasses import dataclass
from typing import Any

from spin_core.config.base import at
from spin_core.config.generate import GenerateConfig
from spin_core.config.run import RunConfig
from spin_core.config.train import TrainConfig

FLOAT32 = 4

SLACK = 1.25
"""What allocators keep beyond what is in use."""

LIBRARIES = 450 * 2**20
"""Memory of Python, torch and transformers before any weight is loaded."""

BYTES_A_TOKEN = 8
"""A token in a Parquet file: its id, and the text that it stands for."""

KERNELS = 120
"""What a layer's forward pass starts, in the time of starting one addition; small models wait for little else."""

EFFICIENCY = 0.6
"""The speed of a whole network's products over that of the fastest of them alone. Measured: .4 (small) to .8."""

START_SECONDS = 3.0
"""From the start of a phase's process until it works."""

ANSWER_SECONDS = 5e-4
"""For one answer, beside the network: its random numbers, its text, its row in a file."""

Parts = dict[str, float]
"""A sum by its parts, in bytes or seconds."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that costs depend on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    """All query heads together."""
    key_width: int
    """All key heads together."""
    vocabulary: int
    itemsize: int
    """Bytes of a weight in memory."""
    adapter: int = 0
    """Parameters that train in place of all, if an adapter is trained."""

    @property
    def trained(self) -> int:
        """Parameters that train."""
        return self.adapter or self.parameters

    @classmethod
    def of(cls, settings: Any, parameters: int, dtype: str) -> "Shape":
        """From a configuration of transformers."""
        text = settings.get_text_config()
        hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
        width = int(getattr(text, "head_dim", None) or hidden // heads)
        return cls(
            parameters=parameters,
            layers=int(text.num_hidden_layers),
            hidden=hidden,
            intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
            query_width=heads * width,
            key_width=int(getattr(text, "num_key_value_heads", None) or heads) * width,
            vocabulary=int(text.vocab_size),
            itemsize=2 if dtype == "bfloat16" else FLOAT32,
        )


@dataclass(frozen=True)
class Texts:
    """How much there is to read and to answer."""

    prompts: int
    """Training prompts."""
    held_out: int
    prompt_tokens: float
    """Mean length of a prompt."""
    response_tokens: float
    """Mean length of a human response; the opponent, trained on those, is taken to be as long-winded."""
    longest_prompt: int
    longest: int
    """Of a prompt and its response together."""
    padding: float = 1.0
    """Tokens of padded rows over those of their sequences (`check_data.padding`)."""


@dataclass(frozen=True)
class Speed:
    """What this device did when it was tried."""

    batch_flops: float
    """Floating-point operations a second in products as large as training's."""
    row_flops: float
    """And in products as small as generation's, one token a row."""
    bandwidth: float
    """Bytes a second through an operation that computes nearly nothing."""
    start: float
    """Seconds to start one operation."""
    own_device: bool = False
    """Each rank has a device of its own, which ranks on one CPU have not."""


def training_memory(shape: Shape, config: TrainConfig, longest: int, device: str = "cpu") -> Parts:
    """The peak of `train` on each rank: in the backward pass, where activations, logits and gradients meet.

    ZeRO shares out the optimizer's states and masters (stage 1), gradients (2) and weights (3) among the ranks. What it
    offloads is not on the GPU; to a CPU it is one memory.
    """
    _, stage = sharing(config, shape)
    weights, gradients, states = held(shape, config)
    away = offloads(config, shape) if device == "cuda" else {}
    if "optimizer" in away:  # the gradients that it sums go along, but for those of a pass
        states, gradients = 0.0, gradients * shape.itemsize / gradient_bytes(shape, config)
    if "param" in away:  # but for the layer at work and the one that is fetched, or the vocabulary's
        vocabulary = shape.vocabulary * shape.hidden
        layers = 2 * (shape.parameters - vocabulary) / shape.layers
        weights = min(shape.parameters, max(vocabulary, layers)) * shape.itemsize
    tokens, whole = tokens_in_a_pass(config, longest), float(shape.parameters * shape.itemsize)
    parts = {
        "weights, gradients and optimizer": weights + gradients + states,
        "activations": SLACK * activations(shape, tokens, config.gradient_checkpointing, config.speed.compile),
        "logits": SLACK * logits_chunk(shape, tokens, config, device),
    }
    if holds_opponent(config, shape):
        parts["the opponent"] = whole
    if stage == 3 and (more := whole - sum(parts.values())) > 0:
        parts["the whole model, before it is shared out"] = more  # `zero.py`
    return parts


def held(shape: Shape, config: TrainConfig) -> tuple[float, float, float]:
    """Bytes of a rank's weights, gradients, and states of the optimizer with its masters, wherever they lie."""
    ranks, stage = sharing(config, shape)
    masters = 0 if shape.itemsize == FLOAT32 else FLOAT32
    states = shape.trained * (masters + FLOAT32 * optimizer_states(config)) / (ranks if stage >= 1 else 1)
    gradients = shape.trained * gradient_bytes(shape, config) / (ranks if stage >= 2 else 1)
    return shape.parameters * shape.itemsize / (ranks if stage >= 3 else 1), gradients, states


def gradient_bytes(shape: Shape, config: TrainConfig) -> int:
    """Of a weight's gradient: its sum in float32, and in half precision that of a pass.

    DeepSpeed keeps the latter in the weights' own precision; one device hands them on one by one.
    """
    return FLOAT32 + (0 if shape.itemsize == FLOAT32 or alone(config, shape) else shape.itemsize)


def offloads(config: TrainConfig, shape: Shape) -> dict[str, str]:
    """Where DeepSpeed is told to keep what would fill a GPU: `optimizer` and `param`, each with `cpu` or `nvme`."""
    from spin_core.training.deepspeed_config import zero_settings

    stage = sharing(config, shape)[1]
    if not stage:
        return {}
    settings = zero_settings(config, dtype_of(shape))["zero_optimization"]
    told = {part: (settings.get(f"offload_{part}") or {}).get("device") or "none" for part in ("optimizer", "param")}
    return {part: str(place) for part, place in told.items() if place != "none" and (part == "optimizer" or stage == 3)}


def offloaded_memory(shape: Shape, config: TrainConfig) -> float:
    """Bytes of a machine's own memory that its ranks offload to."""
    weights, gradients, states = held(shape, config)
    away = offloads(config, shape)
    sums = gradients * FLOAT32 / gradient_bytes(shape, config)
    each = (states + sums) * (away.get("optimizer") == "cpu") + weights * (away.get("param") == "cpu")
    return config.speed.ranks * each


def would_help(shape: Shape, config: TrainConfig, deepspeed: str, longest: int, device: str) -> bool:
    """Whether another configuration of DeepSpeed would take a tenth less."""
    speed = config.speed.model_copy(update={"deepspeed": deepspeed})
    now, then = (
        sum(training_memory(shape, asked, longest, device).values())
        for asked in (config, config.model_copy(update={"speed": speed}))
    )
    return then < 0.9 * now


def holds_opponent(config: TrainConfig, shape: Shape) -> bool:
    """Whether the opponent is a second model beside the player (`train.opponent_of`)."""
    return not config.speed.cached_scores and config.loss != "sft" and not shape.adapter


def sharing(config: TrainConfig, shape: Shape) -> tuple[int, int]:
    """Ranks that train together, and the stage of ZeRO that they share memory by."""
    from spin_core.training.deepspeed_config import stage_of, zero_settings

    ranks = config.speed.ranks * config.speed.nodes
    if ranks == 1 and not config.speed.deepspeed:
        return 1, 0
    return ranks, stage_of(zero_settings(config, dtype_of(shape)))


def dtype_of(shape: Shape) -> str:
    """The weights' precision in memory."""
    return "float32" if shape.itemsize == FLOAT32 else "bfloat16"


def alone(config: TrainConfig, shape: Shape) -> bool:
    """Whether one device trains without DeepSpeed."""
    return sharing(config, shape) == (1, 0) and not config.speed.deepspeed


def optimizer_states(config: TrainConfig) -> int:
    """Numbers kept for each weight beside its master (`optim.optimizer_of`)."""
    return 2 if config.optimizer == "adamw" else 1


def sides(config: TrainConfig) -> int:
    """Responses to a prompt that the loss reads; T-SPIN's third one comes with iteration 1."""
    return {"sft": 1, "t-spin": 3}.get(config.loss, 2)


def tokens_of_item(texts: Texts, config: TrainConfig) -> float:
    """Tokens through the network for a prompt and its responses: the prompt once, if it is shared; else padding too."""
    prompts = 1 if config.speed.packing and config.speed.prefix_sharing else sides(config)
    tokens = prompts * texts.prompt_tokens + sides(config) * texts.response_tokens
    return tokens if config.speed.packing else tokens * texts.padding


def tokens_in_a_pass(config: TrainConfig, longest: int) -> int:
    """The most tokens that a forward and backward pass holds (`batches.deal`): one prompt's responses at the least."""
    pair = longest * sides(config)
    return max(pair, min(config.micro_batch_tokens, config.batch_size * pair))


def activations(shape: Shape, tokens: int, recomputed: bool, compiled: bool = False) -> float:
    """What a Llama-like decoder keeps for the backward pass.

    For each token and layer: two norms' inputs in float32, and their outputs before and after the gain; queries,
    keys, values, and what attention gives, before and after it is laid out anew; four widths of the feed-forward
    layer. Compiled layers compute again what costs little: of the norms they keep the inputs, of the feed-forward
    layer two widths. Recomputed layers keep their inputs alone, but for the one at work.
    """
    itemsize = shape.itemsize
    norms = shape.hidden * (2 * itemsize if compiled else 2 * FLOAT32 + 4 * itemsize)
    attention = itemsize * (3 * shape.query_width + 4 * shape.key_width)
    layer = norms + attention + (2 if compiled else 4) * itemsize * shape.intermediate
    return tokens * (shape.layers * shape.hidden * itemsize + layer if recomputed else shape.layers * layer)


def logits_chunk(shape: Shape, tokens: int, config: TrainConfig, device: str) -> float:
    """The chunk of logits at work with its copies (`fused_loss`); and the projection's gradient of a pass.

    One device without DeepSpeed adds that gradient to those of the batch at once (`direct_gradients`).
    """
    from spin_core.models.vocabulary_projection import CHUNK_LOGITS

    copies = (1 if config.speed.response_logits else 2) * FLOAT32 + (0 if shape.itemsize == FLOAT32 else shape.itemsize)
    chunk = tokens * shape.vocabulary
    if config.speed.response_logits:
        chunk = min(CHUNK_LOGITS[device], chunk)
        if config.speed.compile:
            copies = shape.itemsize
    direct = config.speed.response_logits and alone(config, shape)
    return chunk * copies + (0 if direct else shape.vocabulary * shape.hidden * (FLOAT32 + shape.itemsize))


def generation_memory(shape: Shape, config: GenerateConfig, longest_prompt: int) -> Parts:
    """The peak of `generate`: the weights, keys and values of a batch (`engine`), and its prompts and logits."""
    rows, longest = config.batch_size, longest_prompt + config.max_new_tokens
    columns = longest + max(64, longest // 2)
    prompts = rows * longest_prompt * shape.itemsize * (4 * shape.hidden + 3 * shape.intermediate)
    return {
        "weights": float(shape.parameters * shape.itemsize),
        "keys and values": float(rows * columns * shape.layers * 2 * shape.key_width * shape.itemsize),
        "a batch at work": SLACK * (prompts + 4 * rows * shape.vocabulary * FLOAT32),
    }


def model_disk(shape: Shape) -> int:
    """A published version."""
    return shape.parameters * shape.itemsize


def checkpoint_disk(shape: Shape, config: TrainConfig, steps: int) -> int:
    """The most that checkpoints take while an iteration trains (`checkpoint.Journal`); afterwards they are gone.

    The next one is written before the oldest is dropped; none is written for the last step, but of an adapter. With
    `keep_best` there are two more: the best that the last checkpoint knows of, and a better one since.
    """
    one = shape.trained * FLOAT32 * (1 + optimizer_states(config))
    saved = (steps - 1) // config.save_every + bool(shape.adapter)
    best = min(2, -(-steps // config.evaluate_every)) if config.keep_best else 0
    return one * (min(config.keep_checkpoints + 1, saved) + best)


def text_disk(texts: Texts, config: RunConfig, t: int) -> float:
    """Generations, pairs and held-out answers of iteration t."""
    pair = texts.prompt_tokens + 2 * texts.response_tokens
    return BYTES_A_TOKEN * pair * (texts.prompts + pairs_in(texts, config, t) + 2 * texts.held_out)


def pairs_in(texts: Texts, config: RunConfig, t: int) -> int:
    """Pairs that iteration t trains on, if none is dropped."""
    of_a_prompt = config.generate.answers if config.pairs.answers == "all" else 1
    return texts.prompts * of_a_prompt * (2 if t > 0 and at(config.pairs.mix_previous, t) else 1)


def steps_in(texts: Texts, config: RunConfig, t: int) -> int:
    """Optimizer steps of iteration t."""
    return at(config.train.epochs, t) * -(-pairs_in(texts, config, t) // config.train.batch_size)


def iteration_seconds(shape: Shape, texts: Texts, config: RunConfig, t: int, speed: Speed) -> Parts:
    """Time of iteration t by phase."""
    pairs, row = pairs_in(texts, config, t), texts.prompt_tokens + texts.response_tokens
    item = tokens_of_item(texts, config.train)
    trained = item * pairs * at(config.train.epochs, t)
    scored = item * pairs * (2 if config.train.anchor_in(t) else 1)
    rows, answers = config.generate.batch_size, texts.prompts * config.generate.answers
    devices = max(1, config.generate.speed.workers) if speed.own_device else 1
    return {
        "generating": generation_seconds(shape, texts, answers, rows, speed) / devices,
        "scoring": scoring_seconds(shape, scored, config.train, texts.longest, speed),
        "training": training_seconds(shape, trained, config.train, texts.longest, speed),
        "evaluating": generation_seconds(shape, texts, texts.held_out, rows, speed)
        + pass_seconds(shape, 3 * row * texts.held_out, config.train, texts.longest, speed),
        "starting phases": 5 * START_SECONDS,
    }


def other_seconds(shape: Shape, texts: Texts, config: RunConfig, speed: Speed, preferences: int = 0) -> float:
    """Time of what stands beside the iterations: SFT of a model that is made here, and the controls that train.

    Preferences are taken to be as long as the SFT data.
    """
    row, total = texts.prompt_tokens + texts.response_tokens, 0.0
    if not config.model.path:
        train = config.sft.train
        total += training_seconds(shape, row * texts.prompts * at(train.epochs, 0), train, texts.longest, speed)
    asked, item, steps = config.controls, tokens_of_item(texts, config.train), range(config.iterations)
    played = sum(steps_in(texts, config, t) for t in steps) * config.train.batch_size
    seen = sum(item * pairs_in(texts, config, t) * at(config.train.epochs, t) for t in steps)
    first, epochs = item * pairs_in(texts, config, 0), at(config.train.epochs, 0)
    tuned = row * played * asked.sft_continued + seen * asked.sft_tokens
    tuned += row * texts.prompts * epochs * (sum(asked.shares) + 1 if asked.shares else 0)
    tokens = tuned * max(1, len(asked.sft_learning_rate)) + first * epochs * (sum(asked.shares) + sum(asked.longer))
    if asked.dpo is not None:
        own = item * preferences * asked.dpo.epochs
        tokens += (item * played if asked.dpo.equal_steps else own) + own * asked.dpo_after
        total += scoring_seconds(shape, item * preferences * (1 + asked.dpo_after), config.train, texts.longest, speed)
    return total + training_seconds(shape, tokens, config.train, texts.longest, speed)


def training_seconds(shape: Shape, tokens: float, config: TrainConfig, longest: int, speed: Speed) -> float:
    """Forward and backward over so many tokens. A backward pass is two forward ones; recomputing adds a third.

    Ranks with a GPU each share the work; ranks on one CPU share its cores as well.
    """
    passes = 4 if config.gradient_checkpointing else 3
    devices = config.speed.nodes * (config.speed.ranks if speed.own_device else 1)
    return passes / devices * pass_seconds(shape, tokens, config, longest, speed)


def scoring_seconds(shape: Shape, tokens: float, config: TrainConfig, longest: int, speed: Speed) -> float:
    """A forward pass over so many tokens, shared out among the ranks of one node if these have a GPU each."""
    return pass_seconds(shape, tokens, config, longest, speed) / (config.speed.ranks if speed.own_device else 1)


def pass_seconds(shape: Shape, tokens: float, config: TrainConfig, longest: int, speed: Speed) -> float:
    """A forward pass over so many tokens: arithmetic, memory traffic, and starting kernels."""
    arithmetic = 2.0 * shape.parameters / (EFFICIENCY * speed.batch_flops)
    traffic = 1.5 * activations(shape, 1, recomputed=False) / speed.bandwidth
    starting = shape.layers * KERNELS * speed.start / tokens_in_a_pass(config, longest)
    return tokens * (arithmetic + traffic + starting)


def generation_seconds(shape: Shape, texts: Texts, prompts: int, rows: int, speed: Speed) -> float:
    """Reading so many prompts, and answering them a token a step, `rows` at a time."""
    per_token = 2.0 * shape.parameters / EFFICIENCY
    steps = prompts * texts.response_tokens / min(rows, prompts)
    reading = prompts * texts.prompt_tokens * per_token / speed.batch_flops
    writing = prompts * texts.response_tokens * per_token / speed.row_flops
    return reading + writing + steps * shape.layers * KERNELS * speed.start + prompts * ANSWER_SECONDS
