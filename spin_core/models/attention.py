"""Attention within a packed row, through transformers' attention interface.

A model uses it once `config._attn_implementation` is PACKED or VARLEN; its forward pass then takes the keyword
`packing`, the row's `Layout`, and hands it on to its attention.

Which token sees which is never written as a mask. Each token is copied into all of its slots (`packing.py` shows them),
so that every sequence is whole and by itself; there, causal attention over the sequence is all that is needed:

    keys    p p c c c
    p       x . . . .       A response sees its prompt and its own earlier tokens. Padding repeats the last token and
    p       x x . . .       comes after it, so that nothing sees it and nobody reads its result.
    c       x x x . .
    c       x x x x .       A model with a sliding window of w tokens sees, of these, itself and the w - 1 before it.
    c       x x x x x

Two kernels do this:

    SDPA             One call for the b sequences of similar length, as a batch (b, h, L, d). Lengths are in the shapes.
    variable length  One call of FlashAttention's kernel for all F slots, (F, h, d). `cu_seqlens` tells it where
                     sequences begin: their running starts, in int32. It needs a GPU and half precision, and is what
                     `auto` takes there.

A shared prompt is computed once for each of its responses. This repeats a few hundredths of a pass, but a mask that
shares it would cost more: with a mask, SDPA cannot skip the upper half of the products.

Shapes: h query heads, k key heads (n: either), d width of a head, T tokens, b sequences of L tokens in each call,
F slots of all calls.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from spin_core.errors import ConfigError
from spin_core.models.packing import Layout

PACKED, VARLEN = "spin_packed", "spin_packed_varlen"
"""The attention implementations of transformers that are registered here: SDPA and the variable-length kernel."""

_VARLEN_HEAD_WIDTHS = range(8, 257, 8)
"""The widths of a head that FlashAttention's kernel takes."""

_HARMLESS = ("position_ids", "use_cache", "output_attentions", "sliding_window", "is_causal", "cache_position")
"""Keywords that models hand to their attention and that change nothing here, or are handled by name."""


class Unsupported(Exception):
    """The model asks for an attention that packed rows cannot give."""


def choose_implementation(setting: str, model: PreTrainedModel) -> str:
    """The implementation that `train.speed.attention` means for a model.

    Raises:
        ConfigError: the setting is `varlen`, and this model or machine cannot use that kernel.
    """
    on_gpu = model.device.type == "cuda"
    is_half = model.dtype in (torch.bfloat16, torch.float16)
    fits = on_gpu and is_half and _head_width(model) in _VARLEN_HEAD_WIDTHS
    if fits and setting in ("auto", "varlen") and varlen_kernel() is not None:
        return VARLEN
    if setting == "varlen":
        raise ConfigError(
            "train.speed.attention varlen needs a GPU, half precision, torch 2.11 or newer, and heads whose width is a "
            "multiple of 8 up to 256: set it to auto"
        )
    return PACKED


@lru_cache(maxsize=1)
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's variable-length attention, which takes fewer key than query heads; None where torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    if "window_size" not in parameters:
        return None
    # A torch without this parameter takes fewer key heads without being asked.
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in parameters else varlen_attn


def _head_width(model: PreTrainedModel) -> int:
    """d; 0 for a model without heads."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    return int(getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0))


# Left out of torch.compile, which would compile it again for every layout: lengths are constants to it.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _packed_attention(
    module: nn.Module,
    query_1hTd: Tensor,
    key_1kTd: Tensor,
    value_1kTd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Layout | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The result of each token, (1, T, h, d), with the signature that transformers asks for.

    Raises:
        Unsupported: the model asks for more than causal attention, perhaps within a sliding window.
    """
    requests = [name for name, value in others.items() if value is not None and name not in _HARMLESS]
    requests += ["dropout"] * bool(dropout) + ["plain rows"] * (packing is None)
    if attention_mask is not None and int(attention_mask) != sliding_window:
        requests.append(f"a mask of {int(attention_mask)} tokens")
    if requests or packing is None:
        raise Unsupported(f"{type(module).__name__} asks for {', '.join(requests)}")
    config: Any = module.config
    attend = {PACKED: _attend_by_sdpa, VARLEN: _attend_by_varlen}[config._attn_implementation]
    return attend(query_1hTd, key_1kTd, value_1kTd, packing, scaling, sliding_window), None


def _attend_by_sdpa(
    query_1hTd: Tensor, key_1kTd: Tensor, value_1kTd: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """Attention by SDPA, (1, T, h, d): one call for each batch of sequences of similar length."""
    query_Fhd, key_Fkd, value_Fkd = (_into_slots(x, layout) for x in (query_1hTd, key_1kTd, value_1kTd))
    slots_of_calls = [b * length for b, length in layout.calls]
    results = []
    parts = (torch.split(x, slots_of_calls) for x in (query_Fhd, key_Fkd, value_Fkd))
    for call, q, k, v in zip(layout.calls, *parts, strict=True):
        q_bhLd, k_bkLd, v_bkLd = (x.unflatten(0, call).transpose(1, 2) for x in (q, k, v))
        mask_LL = _window_mask(call[1], window, q.device) if window is not None and window < call[1] else None
        out_bhLd = F.scaled_dot_product_attention(
            q_bhLd, k_bkLd, v_bkLd, mask_LL, is_causal=mask_LL is None, scale=scaling,
            enable_gqa=k.shape[1] != q.shape[1],
        )  # fmt: skip
        results.append(out_bhLd.transpose(1, 2).flatten(0, 1))
    return _out_of_slots(torch.cat(results), layout)


def _attend_by_varlen(
    query_1hTd: Tensor, key_1kTd: Tensor, value_1kTd: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """Attention by one call of torch's variable-length kernel, (1, T, h, d)."""
    attend = varlen_kernel()
    assert attend is not None, "chosen where torch has no such kernel"
    query_Fhd, key_Fkd, value_Fkd = (_into_slots(x, layout) for x in (query_1hTd, key_1kTd, value_1kTd))
    longest = max(length for _, length in layout.calls)
    # Queries and keys have the same lengths. A window of (-1, 0) is all earlier tokens and none after.
    out_Fhd: Tensor = attend(
        query_Fhd, key_Fkd, value_Fkd, layout.cu_seqlens, layout.cu_seqlens, longest, longest, scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )  # fmt: skip
    return _out_of_slots(out_Fhd, layout)


def _into_slots(x_1nTd: Tensor, layout: Layout) -> Tensor:
    """Copy each token into all of its slots, (F, n, d)."""
    return _IntoSlots.apply(x_1nTd.squeeze(0).transpose(0, 1), layout)  # type: ignore[no-any-return, no-untyped-call]


def _out_of_slots(x_Fnd: Tensor, layout: Layout) -> Tensor:
    """Take each token's result from one of its slots, (1, T, n, d)."""
    return _OutOfSlots.apply(x_Fnd, layout)[None]  # type: ignore[no-any-return, no-untyped-call]


class _IntoSlots(torch.autograd.Function):
    """Indexing whose gradient is the same on every run.

    The gradient of a token is the sum over its slots. Slots of padding are left out, since nothing sees them and their
    gradient is zero. Autograd's own gradient of indexing scatters, on a GPU in an order that differs from run to run.
    Here each of `layout.repeats` is added by itself, and no token occurs twice within one.
    """

    @staticmethod
    def forward(ctx: Any, x_Tnd: Tensor, layout: Layout) -> Tensor:
        """(F, n, d)."""
        ctx.layout = layout
        return x_Tnd.index_select(0, layout.token_F)

    @staticmethod
    def backward(ctx: Any, grad_Fnd: Tensor) -> tuple[Tensor, None]:
        """(T, n, d)."""
        grad_Tnd = grad_Fnd.index_select(0, ctx.layout.slot_T)
        for token, slot in ctx.layout.repeats:
            grad_Tnd.index_copy_(0, token, grad_Tnd.index_select(0, token) + grad_Fnd.index_select(0, slot))
        return grad_Tnd, None


class _OutOfSlots(torch.autograd.Function):
    """The reverse: only the slot that a result is taken from gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x_Fnd: Tensor, layout: Layout) -> Tensor:
        """(T, n, d)."""
        ctx.layout, ctx.slots = layout, x_Fnd.shape[0]
        return x_Fnd.index_select(0, layout.slot_T)

    @staticmethod
    def backward(ctx: Any, grad_Tnd: Tensor) -> tuple[Tensor, None]:
        """(F, n, d)."""
        grad_Fnd = grad_Tnd.new_zeros((ctx.slots, *grad_Tnd.shape[1:]))
        return grad_Fnd.index_copy_(0, ctx.layout.slot_T, grad_Tnd), None


@lru_cache(maxsize=8)
def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Which keys a token sees: itself and the `window` - 1 tokens before it, (L, L)."""
    at_L = torch.arange(length, device=device)
    distance_LL = at_L[:, None] - at_L
    return (distance_LL >= 0) & (distance_LL < window)


def _no_mask(local_size: int | None = None, **_others: Any) -> Tensor | None:
    """What a model makes in place of a mask: nothing, or the size of its window if its tokens see only a window.

    Some models know a window, or chunks, as a mask only. The size reaches `_packed_attention` in the mask's place, and
    is refused there unless the keyword `sliding_window` says the same.
    """
    return None if local_size is None else torch.full((1, 1, 1, 1), local_size)


for name in (PACKED, VARLEN):
    AttentionInterface.register(name, _packed_attention)
    AttentionMaskInterface.register(name, _no_mask)
