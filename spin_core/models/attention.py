"""Attention within a packed row, through transformers' attention interface.

A model takes part by `config._attn_implementation = PACKED`; its forward pass then hands on the keyword `packing`, the
row's `Layout`. Shapes: h query heads, k key heads (n: either), d width of a head, T tokens, b sequences of L tokens in
each call, F places in all calls.

SDPA: the tokens of each sequence are gathered, sequences of like length together, and attend causally. A shared prompt
is gathered once for each of its responses; that repeats a part of attention's products, a few hundredths of a pass, and
in return needs no mask, with which the kernel could not skip the upper half.
Variable length: the same tokens in one call of FlashAttention's kernel, which is told where sequences begin. It wants a
GPU and half precision, and is what `auto` takes there.
"""

import inspect
import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from spin_core.data.sequences import Sequences
from spin_core.errors import ConfigError
from spin_core.models.packing import Layout, Rows, packed_rows, padded_rows

log = logging.getLogger("spin_core")

PACKED, VARLEN = "spin_packed", "spin_packed_varlen"
"""The attention implementations of transformers that are registered here."""

HEAD_WIDTHS = range(8, 257, 8)
"""The widths of a head that FlashAttention's kernel takes."""

ATTENTIONS = ("full_attention", "sliding_attention", "chunked_attention")
"""The kinds of layers whose tokens meet in attention alone: others carry a state along the row."""

HANDLED = ("position_ids", "use_cache", "output_attentions", "sliding_window", "is_causal", "cache_position")


class Unsupported(Exception):
    """The model asks for an attention that packed rows cannot give."""


# Compiled, it would be so anew for every layout, whose lengths are numbers to it.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
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
    """The result of each token, (1, T, h, d)."""
    asked = [name for name, value in others.items() if value is not None and name not in HANDLED]
    asked += ["dropout"] * bool(dropout) + ["plain rows"] * (packing is None)
    if attention_mask is not None and int(attention_mask) != sliding_window:
        asked.append(f"a mask of {int(attention_mask)} tokens")
    if asked or packing is None:
        raise Unsupported(f"{type(module).__name__} asks for {', '.join(asked)}")
    config: Any = module.config
    attend = {PACKED: gathered, VARLEN: variable}[config._attn_implementation]
    return attend(query_1hTd, key_1kTd, value_1kTd, packing, scaling, sliding_window), None


def gathered(
    query_1hTd: Tensor, key_1kTd: Tensor, value_1kTd: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """By SDPA on each call's sequences."""
    query_Fhd, key_Fkd, value_Fkd = (
        spread(x.squeeze(0).transpose(0, 1), layout) for x in (query_1hTd, key_1kTd, value_1kTd)
    )
    sizes = [b * length for b, length in layout.calls]
    found = []
    parts = (torch.split(x, sizes) for x in (query_Fhd, key_Fkd, value_Fkd))
    for call, q, k, v in zip(layout.calls, *parts, strict=True):
        q_bhLd, k_bkLd, v_bkLd = (x.unflatten(0, call).transpose(1, 2) for x in (q, k, v))
        mask_LL = band(call[1], window, q.device) if window is not None and window < call[1] else None
        out_bhLd = F.scaled_dot_product_attention(
            q_bhLd, k_bkLd, v_bkLd, mask_LL, is_causal=mask_LL is None, scale=scaling,
            enable_gqa=k.shape[1] != q.shape[1],
        )  # fmt: skip
        found.append(out_bhLd.transpose(1, 2).flatten(0, 1))
    return collect(torch.cat(found), layout)[None]


def variable(
    query_1hTd: Tensor, key_1kTd: Tensor, value_1kTd: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """By one call of torch's variable-length kernel."""
    attend = varlen_kernel()
    assert attend is not None, "asked for where it is not"
    query_Fhd, key_Fkd, value_Fkd = (
        spread(x.squeeze(0).transpose(0, 1), layout) for x in (query_1hTd, key_1kTd, value_1kTd)
    )
    longest = max(length for _, length in layout.calls)
    out_Fhd: Tensor = attend(
        query_Fhd, key_Fkd, value_Fkd, layout.bounds, layout.bounds, longest, longest, scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )  # fmt: skip
    return collect(out_Fhd, layout)[None]


@lru_cache(maxsize=1)
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's variable-length attention, that takes fewer key than query heads; None where torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    knows = inspect.signature(varlen_attn).parameters
    if "window_size" not in knows:
        return None
    # Where torch does not know the word, the kernel takes fewer key heads unasked.
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in knows else varlen_attn


def kernel_of(asked: str, model: PreTrainedModel) -> str:
    """Which implementation `train.speed.attention` means for a model. `ConfigError` for one that cannot be had."""
    on_gpu = model.device.type == "cuda"
    takes = on_gpu and model.dtype in (torch.bfloat16, torch.float16) and head_width(model) in HEAD_WIDTHS
    if takes and asked in ("auto", "varlen") and varlen_kernel() is not None:
        return VARLEN
    if asked == "varlen":
        raise ConfigError(
            "train.speed.attention varlen needs a GPU, half precision, torch 2.11 or newer, and heads whose width is a "
            "multiple of 8 up to 256: set it to auto"
        )
    return PACKED


def head_width(model: PreTrainedModel) -> int:
    """d; 0 for a model without heads."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    return int(getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0))


def spread(x_Tnd: Tensor, layout: Layout) -> Tensor:
    """Each token at all its places, (F, n, d)."""
    return Spread.apply(x_Tnd, layout)  # type: ignore[no-any-return, no-untyped-call]


def collect(x_Fnd: Tensor, layout: Layout) -> Tensor:
    """Each token's result from one of its places, (T, n, d)."""
    return Collect.apply(x_Fnd, layout)  # type: ignore[no-any-return, no-untyped-call]


class Spread(torch.autograd.Function):
    """The gradient of a token is the sum over its places, of which padding's is none: nothing sees it.

    Unlike indexing, this adds up without scattering, in one order, whatever the device.
    """

    @staticmethod
    def forward(ctx: Any, x_Tnd: Tensor, layout: Layout) -> Tensor:
        """(F, n, d)."""
        ctx.layout = layout
        return x_Tnd.index_select(0, layout.token_F)

    @staticmethod
    def backward(ctx: Any, grad_Fnd: Tensor) -> tuple[Tensor, None]:
        """(T, n, d)."""
        grad_Tnd = grad_Fnd.index_select(0, ctx.layout.place_T)
        for token, place in ctx.layout.again:
            grad_Tnd.index_copy_(0, token, grad_Tnd.index_select(0, token) + grad_Fnd.index_select(0, place))
        return grad_Tnd, None


class Collect(torch.autograd.Function):
    """No place but the one that is taken gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x_Fnd: Tensor, layout: Layout) -> Tensor:
        """(T, n, d)."""
        ctx.layout, ctx.places = layout, x_Fnd.shape[0]
        return x_Fnd.index_select(0, layout.place_T)

    @staticmethod
    def backward(ctx: Any, grad_Tnd: Tensor) -> tuple[Tensor, None]:
        """(F, n, d)."""
        grad_Fnd = grad_Tnd.new_zeros((ctx.places, *grad_Tnd.shape[1:]))
        return grad_Fnd.index_copy_(0, ctx.layout.place_T, grad_Tnd), None


@lru_cache(maxsize=8)
def band(length: int, window: int, device: torch.device) -> Tensor:
    """Which keys a token sees: itself and the `window` - 1 before it, (L, L)."""
    at_L = torch.arange(length, device=device)
    behind_LL = at_L[:, None] - at_L
    return (behind_LL >= 0) & (behind_LL < window)


def no_mask(local_size: int | None = None, **_others: Any) -> Tensor | None:
    """What a model makes in place of a mask: nothing; or, if its tokens see a window alone, that window's size.

    So `packed_attention` learns of a window, or of chunks, that a model knows as a mask only.
    """
    return None if local_size is None else torch.full((1, 1, 1, 1), local_size)


for name in (PACKED, VARLEN):
    AttentionInterface.register(name, packed_attention)
    AttentionMaskInterface.register(name, no_mask)


def pack(model: PreTrainedModel, implementation: str = PACKED) -> bool:
    """Make a model take packed rows, if it can: the log says if not."""
    reason = refusal(model, implementation)
    if reason is not None:
        log.info("%s cannot take packed rows (%s): its rows are padded", type(model).__name__, reason)
    return reason is None


def refusal(model: PreTrainedModel, implementation: str = PACKED) -> str | None:
    """Why a model cannot take packed rows. None if it can, and from then on it takes no others.

    Asked of the model itself, since families differ in what they hand on to their attention: packed rows must give
    the hidden states of plain ones, but for rounding, and no response's may hang on another one, not even a little.
    """
    was = model.config._attn_implementation
    kinds: Any = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if others := sorted(set(kinds) - set(ATTENTIONS)):
        return f"it has layers of {' and '.join(others)}"
    prompt, responses = [1, 2, 3], [[4, 5], [5, 4, 6]]
    sequences = Sequences.of([prompt] * 2 + [[3]], [*responses, [6, 5, 4]])
    device = model.device
    with torch.no_grad():
        plain = model.base_model(**arguments(padded_rows(sequences, np.arange(3)).to(device)))[0]
        want_TH = torch.cat([plain[0, :5], plain[1, 3:6], plain[2, :4]])
    try:
        model.set_attn_implementation(implementation)
        rows = packed_rows(sequences, np.arange(3), np.array([0, 0, 1])).to(device)
        first = slice(3, 5)
        have_TH, seen_TH = with_what_others_see_of(model, rows, first)
        tolerance = 0.1 if have_TH.dtype == torch.bfloat16 else 1e-3
        near = torch.allclose(have_TH, want_TH, rtol=tolerance, atol=tolerance * float(want_TH.abs().max()))
        if near and not seen_TH.any():
            return None
        reason = "a response would see another one" if near else "its hidden states would be others"
    except (Unsupported, TypeError, ValueError) as error:
        reason = str(error)
    model.set_attn_implementation(was)
    return reason


def with_what_others_see_of(model: PreTrainedModel, rows: Rows, some: slice) -> tuple[Tensor, Tensor]:
    """A row's hidden states, (T, H), and the gradient by the embeddings of some tokens, (t, H), of all others' states.

    Where nothing leads from these tokens to the others, that gradient is zero to the bit, whatever rounding does.
    """
    found: list[Tensor] = []

    def note(_module: nn.Module, _given: Any, embedded: Tensor) -> Tensor:
        found.append(embedded.detach().requires_grad_())
        return found[-1] * 1  # what follows may change it in place

    hook = model.get_input_embeddings().register_forward_hook(note)
    try:
        with torch.enable_grad():
            hidden_TH: Tensor = model.base_model(**arguments(rows))[0][0]
            # Weighed unlike: a norm makes a plain sum of all features constant.
            weights_TH = torch.arange(hidden_TH.numel(), device=hidden_TH.device).view_as(hidden_TH).cos()
            weights_TH[some] = 0
            (seen,) = torch.autograd.grad((hidden_TH * weights_TH).sum(), found[0])
    finally:
        hook.remove()
    return hidden_TH.detach(), seen[0, some]


def arguments(rows: Rows) -> dict[str, Any]:
    """What the model's forward pass is given."""
    given: dict[str, Any] = {"input_ids": rows.input_ids_NT, "use_cache": False}
    if rows.layout is not None:
        given |= {"position_ids": rows.layout.position_ids_1T, "packing": rows.layout}
    return given
