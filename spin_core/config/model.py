"""Settings of the model: θ_0, its training if a recipe has its own model, and how prompts are written for it."""

import json
from typing import Any, Literal, Self

from pydantic import PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from spin_core.config.base import Frozen, Location
from spin_core.config.train import SftTrainConfig

_OWN_VARIABLES = {"messages", "tools", "add_generation_prompt"}
"""What a chat template is always given."""


class ModelConfig(Frozen):
    """Where θ_0, the SFT model, comes from."""

    path: Location = ""
    """A local folder or a hub name of a causal language model. Empty: train one as set in `sft`."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    tokenizer: Location | None = None
    """Folder or hub name of the tokenizer, if it is not in the model's folder."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights in memory, for generation, scoring and training."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes a GPU if there is one."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Turn it on only after you have read that code."""

    pad_token: str | None = None
    """The padding token, for a tokenizer that has none; it must be in the vocabulary already."""

    eos_token: str | None = None
    """The token that ends a response, if it is not the tokenizer's end-of-sequence token."""


class ChatConfig(Frozen):
    """How a prompt is written for the model."""

    template: Literal["tokenizer", "plain", "format"] = "tokenizer"
    """`tokenizer`: the tokenizer's chat template; `plain`: only the prompt's text; `format`: the string in `format`."""

    format: str = "### Instruction: {prompt}\n\n### Response: "
    """With `template: format`: how one prompt becomes text."""

    system: str | None = None
    """A system prompt for conversations without one."""

    add_bos: bool = True
    """With `plain` and `format`: begin with the tokenizer's BOS token, if it has one."""

    template_kwargs: dict[str, Any] = {}
    """Switches of the tokenizer's chat template, like `{"enable_thinking": false}`. Set `enable_thinking` to true where
    the responses have thoughts: prompts without a response, such as MT-Bench's, then ask for them too."""

    @model_validator(mode="after")
    def _switches_are_usable(self) -> Self:
        if self.template_kwargs and self.template != "tokenizer":
            raise ValueError(f"template_kwargs are for the tokenizer's template, and chat.template is {self.template}")
        if own := _OWN_VARIABLES & self.template_kwargs.keys():
            raise ValueError(f"template_kwargs cannot set {', '.join(sorted(own))}: it is given to every template")
        for name, value in self.template_kwargs.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                kind = type(value).__name__
                raise ValueError(f"template_kwargs.{name} is a {kind}, which JSON cannot hold: quote it") from error
        return self

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out while it is empty, so that it is not a part of older identities.
        values: dict[str, Any] = serialize(self)
        if not self.template_kwargs:
            values.pop("template_kwargs", None)
        return values


class SftConfig(Frozen):
    """How θ_0 is trained, for recipes with their own small model of Llama's architecture."""

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
