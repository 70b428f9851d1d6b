"""The sizes that a run's costs depend on: of the model, of the texts, and how many pairs and steps they make.

Lengths are in tokens, memory and files in bytes.
"""

from dataclasses import dataclass
from typing import Any

from spin_core.config.base import at
from spin_core.config.generate import GenerateConfig
from spin_core.config.run import RunConfig
from spin_core.config.train import TrainConfig

TYPICAL_TOKENS, TYPICAL_PROMPTS = 16384, 128
"""What `auto` takes on a CPU with enough memory: tokens in a pass of training, and prompts answered at a time."""

FLOAT32 = 4
"""Bytes of a number in float32."""

Parts = dict[str, float]
"""The named parts of a sum, in bytes or seconds."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that costs depend on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    """Width of all query heads together."""
    key_width: int
    """Width of all key heads together."""
    vocabulary: int
    itemsize: int
    """Bytes of a weight in memory."""
    heads: int = 1
    """Query heads."""
    adapter: int = 0
    """Parameters of the adapter that is trained; 0 if all weights are."""

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.adapter or self.parameters

    @property
    def dtype(self) -> str:
        """The weights' precision in memory."""
        return "float32" if self.itemsize == FLOAT32 else "bfloat16"

    @classmethod
    def of(cls, settings: Any, parameters: int, dtype: str) -> "Shape":
        """The shape of a model with this configuration of transformers."""
        text = settings.get_text_config()
        # A model without attention, such as Mamba, has no heads. Its mixers are about as wide as the model.
        hidden, heads = int(text.hidden_size), int(getattr(text, "num_attention_heads", None) or 1)
        width = int(getattr(text, "head_dim", None) or hidden // heads)
        return cls(
            parameters=parameters,
            layers=int(text.num_hidden_layers),
            hidden=hidden,
            intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
            query_width=heads * width,
            key_width=int(getattr(text, "num_key_value_heads", None) or heads) * width,
            vocabulary=int(text.vocab_size),
            heads=heads,
            itemsize=2 if dtype == "bfloat16" else FLOAT32,
        )


@dataclass(frozen=True)
class Texts:
    """How many prompts there are, and how long prompts and responses are."""

    prompts: int
    """Training prompts."""
    held_out: int
    """Held-out prompts."""
    prompt_tokens: float
    """Mean length of a prompt."""
    response_tokens: float
    """Mean length of a human response. The opponent, which was trained on those, is assumed to write as much."""
    longest_prompt: int
    longest: int
    """The longest prompt with its response."""
    padding: float = 1.0
    """Tokens of padded rows divided by the tokens of their sequences (`data.padding`)."""


def sides(config: TrainConfig) -> int:
    """Responses per prompt that the loss reads. T-SPIN's third one comes with iteration 1."""
    return {"sft": 1, "t-spin": 3}.get(config.loss, 2)


def tokens_of_item(texts: Texts, config: TrainConfig) -> float:
    """Tokens through the network for a prompt and its responses.

    A shared prompt counts once. Rows that are not packed count with their padding.
    """
    prompts = 1 if config.speed.packing and config.speed.prefix_sharing else sides(config)
    tokens = prompts * texts.prompt_tokens + sides(config) * texts.response_tokens
    return tokens if config.speed.packing else tokens * texts.padding


def tokens_in_a_pass(config: TrainConfig, longest: int) -> int:
    """The most tokens that one forward and backward pass holds (`batches.deal`): at least one prompt's responses."""
    pair = longest * sides(config)
    return max(pair, min(micro_batch_tokens(config), config.batch_size * pair))


def micro_batch_tokens(config: TrainConfig) -> int:
    """The setting, or what `auto` takes where memory suffices. `fit.fit_run` puts the size that fits in its place."""
    return TYPICAL_TOKENS if config.micro_batch_tokens == "auto" else config.micro_batch_tokens


def prompts_at_a_time(config: GenerateConfig) -> int:
    """The setting, or what `auto` takes where memory suffices. `fit.fit_run` puts the size that fits in its place."""
    return TYPICAL_PROMPTS if config.batch_size == "auto" else config.batch_size


def pairs_in(texts: Texts, config: RunConfig, t: int) -> int:
    """Pairs that iteration t trains on, if none is dropped."""
    answers = config.generate.answers if config.pairs.answers == "all" else 1
    return texts.prompts * answers * (2 if t > 0 and at(config.pairs.mix_previous, t) else 1)


def steps_in(texts: Texts, config: RunConfig, t: int) -> int:
    """Optimizer steps of iteration t: epochs · ⌈pairs / batch size⌉."""
    return at(config.train.epochs, t) * -(-pairs_in(texts, config, t) // config.train.batch_size)
