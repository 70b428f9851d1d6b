"""Settings of the model: θ_0, its training where a recipe brings its own, and how prompts are written for it."""

from typing import Literal

from pydantic import PositiveInt

from spin_core.config.base import Frozen, Location
from spin_core.config.train import SftTrainConfig


class ModelConfig(Frozen):
    """Where θ_0, the SFT model, comes from."""

    path: Location = ""
    """A local folder or a hub name of a causal language model. Empty: train one as `sft` says."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    tokenizer: Location | None = None
    """Folder or hub name of the tokenizer, if it does not lie beside the model."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights in memory, for generation, scoring and training alike."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes a GPU if there is one."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off, unless you have read that code."""

    pad_token: str | None = None
    """The padding token, for a tokenizer that has none; it must be in the vocabulary already."""

    eos_token: str | None = None
    """The token that ends a response, if it is not the tokenizer's own end of sequence."""


class ChatConfig(Frozen):
    """How a prompt is written for the model."""

    template: Literal["tokenizer", "plain", "format"] = "tokenizer"
    """The tokenizer's own chat template; the bare text; or the `format` string."""

    format: str = "### Instruction: {prompt}\n\n### Response: "
    """With `template: format`: how one prompt becomes text."""

    system: str | None = None
    """A system prompt set before conversations that bring none."""

    add_bos: bool = True
    """With `plain` and `format`: begin with the tokenizer's BOS, where it has one."""


class SftConfig(Frozen):
    """How θ_0 is trained, for recipes that bring their own small Llama-shaped model."""

    hidden_size: PositiveInt = 32
    """Width of the model."""

    layers: PositiveInt = 2
    """Number of decoder layers."""

    heads: PositiveInt = 2
    """Attention heads."""

    intermediate_size: PositiveInt = 64
    """Width of the feed-forward layer."""

    train: SftTrainConfig = SftTrainConfig()
    """Its training on the SFT data."""
