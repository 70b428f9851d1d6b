"""What rows and logits a model can work with, found from its configuration alone, before its weights are here.

A tiny random model of the same kind is built and asked. Families differ in what they hand on to their attention, and
models of one family differ by their settings. So the tiny model keeps all settings except sizes: capped logits,
windows, the width of a head, and one layer of each kind.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from spin_core.errors import first_line
from spin_core.models import packing_check
from spin_core.models.logit_transform import logit_transform_of

_VOCABULARY, _WIDTH, _CONTEXT, _HEADS = 64, 32, 64, 4

_MAX_PARAMETERS = 50_000_000
"""A model with more is not tiny: its configuration has other names for its sizes."""

_WIDTH_SETTINGS = (
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp", "ffn_dim",
    "n_inner", "ffn_hidden_size", "hidden_size_per_layer_input",
)  # fmt: skip
"""Sizes on which nothing in attention depends."""

_CANNOT_BUILD = (
    ValueError, TypeError, AttributeError, LookupError, RuntimeError, AssertionError, ArithmeticError, ImportError,
)  # fmt: skip
"""How a family may say that it cannot be built in such sizes, or that it cannot run."""


def why_not_packed(settings: Any, trust_remote_code: bool = False) -> str | None:
    """Why models of this configuration cannot take packed rows; empty if they can, None if that is unknown."""
    try:
        return packing_check.why_not_packed(tiny_model(settings, trust_remote_code)) or ""
    except _CANNOT_BUILD:
        return None


def needs_all_logits(settings: Any, trust_remote_code: bool = False) -> bool:
    """Whether such models do more to their logits than a `LogitTransform` can say. False if that is unknown."""
    try:
        model = tiny_model(settings, trust_remote_code)
        with torch.no_grad():
            # The logits of a random model are so small that a cap would hardly change them.
            model.get_output_embeddings().weight.mul_(300)
        return logit_transform_of(model) is None
    except _CANNOT_BUILD:
        return False


def why_not_on_text(settings: Any, trust_remote_code: bool = False) -> str | None:
    """Why a multimodal model cannot be trained on text alone; None if it can, or if that is unknown."""
    try:
        model = tiny_model(settings, trust_remote_code).train()
    except _CANNOT_BUILD:
        return None
    try:
        ids = torch.arange(1, 9)[None]
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.sum().backward()
    except _CANNOT_BUILD as error:
        return first_line(error)
    return None


def tiny_model(settings: Any, trust_remote_code: bool = False) -> PreTrainedModel:
    """A random model of the configuration's kind, in float32 on the CPU. Raises one of many errors if none can be."""
    small = _shrink(settings)
    # Count before allocating: a size under an unknown name would still be large.
    with torch.device("meta"):
        parameters = sum(
            weight.numel()
            for weight in AutoModelForCausalLM.from_config(
                copy.deepcopy(small), trust_remote_code=trust_remote_code
            ).parameters()
        )
    if parameters > _MAX_PARAMETERS:
        raise ValueError(f"{parameters:,} parameters are not tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            small, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    return model.eval()


def _shrink(settings: Any) -> Any:
    """The configuration with small sizes, and one layer of each kind that it has."""
    small = copy.deepcopy(settings)
    text = small.get_text_config()
    for name, size in _small_sizes(text).items():
        if getattr(text, name, None) is not None:
            setattr(text, name, size)
    if text is not small:
        _shrink_other_parts(small)
    return small


def _shrink_other_parts(small: Any) -> None:
    """Give the vision or sound part of a multimodal model one layer, and its special tokens ids of the vocabulary."""
    for part in (value for value in vars(small).values() if hasattr(value, "to_dict")):
        if part is not small.get_text_config():
            for name in ("num_hidden_layers", "depth"):
                if getattr(part, name, None) is not None:
                    setattr(part, name, 1)
    special = 0
    for name, value in list(vars(small).items()):
        if isinstance(value, int) and (name.endswith(("_token_id", "_token_index")) or name == "vocab_size"):
            special += 1
            setattr(small, name, _VOCABULARY if name == "vocab_size" else _VOCABULARY - special)


def _small_sizes(text: Any) -> dict[str, Any]:
    """Small values of a language model's sizes."""
    heads = int(text.num_attention_heads)
    key_heads = getattr(text, "num_key_value_heads", None)
    head_width = getattr(text, "head_dim", None)
    few_key_heads = _HEADS if key_heads in (None, heads) else 1 if key_heads == 1 else _HEADS // 2
    # Without a setting of its own, a head's width is its share of the hidden size. It is kept, because rotary
    # positions depend on it.
    hidden = _WIDTH if head_width else _HEADS * (int(text.hidden_size) // heads)
    return {
        "hidden_size": hidden,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": few_key_heads,
        "vocab_size": _VOCABULARY,
        "vocab_size_per_layer_input": _VOCABULARY,
        "max_position_embeddings": _CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **dict.fromkeys(_WIDTH_SETTINGS, _WIDTH),
        "word_embed_proj_dim": hidden,
        **_few_layers(text),
    }


def _few_layers(settings: Any) -> dict[str, Any]:
    """The number of layers, and the lists that say which kind each layer is: the first of each kind, at least two."""
    number = int(settings.num_hidden_layers)
    lists = {
        name: value
        for name, value in settings.to_dict().items()
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == number
    }
    kinds = [str(kind) for kind in zip(*lists.values(), strict=True)] if lists else [""] * number
    # Going backwards, the first layer of each kind is the one that stays.
    chosen = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())
    if len(chosen) == 1:
        chosen *= 2
    return {"num_hidden_layers": len(chosen), **{name: [value[i] for i in chosen] for name, value in lists.items()}}
