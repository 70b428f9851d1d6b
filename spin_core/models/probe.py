"""What rows and logits a model can do with, before its weights are here: asked of a tiny random one of its kind.

Families differ in what they hand on to their attention, and one family's models do by their settings. So the tiny one
keeps all settings but sizes: capped logits, windows, the width of a head, and a layer of each kind.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from spin_core.models import attention

VOCABULARY, WIDTH, CONTEXT = 64, 32, 64

HEADS = 4

LARGEST = 50_000_000
"""Parameters of a model that is no longer tiny, since its configuration names its sizes otherwise."""

WIDTHS = (
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp", "ffn_dim",
    "n_inner", "ffn_hidden_size", "hidden_size_per_layer_input",
)  # fmt: skip
"""Sizes that nothing in attention depends on."""

REFUSED = (
    ValueError, TypeError, AttributeError, LookupError, RuntimeError, AssertionError, ArithmeticError, ImportError,
)  # fmt: skip
"""How a family may say that it cannot be built in such sizes, or that it cannot run."""


def refusal(settings: Any, trust_remote_code: bool = False) -> str | None:
    """Why models of this configuration cannot take packed rows; empty if they can, None if nobody knows."""
    try:
        return attention.refusal(tiny(settings, trust_remote_code)) or ""
    except REFUSED:
        return None


def needs_all_logits(settings: Any, trust_remote_code: bool = False) -> bool:
    """Whether such models do more to their logits than `logps.Ending` knows. False if nobody knows."""
    from spin_core.models.logps import ending_of

    try:
        model = tiny(settings, trust_remote_code)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(300)  # a random model's logits are too small to meet a cap
        return ending_of(model) is None
    except REFUSED:
        return False


def tiny(settings: Any, trust_remote_code: bool = False) -> PreTrainedModel:
    """A random model of the configuration's kind, in float32 on the CPU. One of `REFUSED` if there can be none."""
    small = shrunk(settings)
    with torch.device("meta"):
        parameters = sum(
            weight.numel()
            for weight in AutoModelForCausalLM.from_config(
                copy.deepcopy(small), trust_remote_code=trust_remote_code
            ).parameters()
        )
    if parameters > LARGEST:
        raise ValueError(f"{parameters:,} parameters are not tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            small, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    return model.eval()


def shrunk(settings: Any) -> Any:
    """The configuration with small sizes, and one layer of each kind that it has."""
    heads = int(settings.num_attention_heads)
    groups = getattr(settings, "num_key_value_heads", None)
    stated = getattr(settings, "head_dim", None)
    few = HEADS if groups in (None, heads) else 1 if groups == 1 else HEADS // 2
    # Without a width of its own a head has its share of the hidden size, and keeps it, since rotations hang on it.
    hidden = WIDTH if stated else HEADS * (int(settings.hidden_size) // heads)
    sizes = {
        "hidden_size": hidden,
        "num_attention_heads": HEADS,
        "num_key_value_heads": few,
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **dict.fromkeys(WIDTHS, WIDTH),
        "word_embed_proj_dim": hidden,
        **layers(settings),
    }
    small = copy.deepcopy(settings)
    for name, size in sizes.items():
        if getattr(small, name, None) is not None:
            setattr(small, name, size)
    return small


def layers(settings: Any) -> dict[str, Any]:
    """How many layers there are, and the lists that say of what kind each is: the first of each kind, two at least."""
    number = int(settings.num_hidden_layers)
    lists = {
        name: value
        for name, value in settings.to_dict().items()
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == number
    }
    kinds = [str(kind) for kind in zip(*lists.values(), strict=True)] if lists else [""] * number
    chosen = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())
    if len(chosen) == 1:
        chosen *= 2
    return {"num_hidden_layers": len(chosen), **{name: [value[i] for i in chosen] for name, value in lists.items()}}
