"""Whether a model computes on packed rows what it computes on plain ones. The model itself is asked.

Families of models differ in what they hand on to their attention, and in layers that carry a state along the row. So a
model is given three short sequences both ways, and has to pass three checks: its layers are of kinds that are known to
be safe; its hidden states are the same, but for rounding; and no response has any influence on another one.

Shapes: T tokens of the packed row, t of them chosen, H hidden size.
"""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spin_core.data.sequences import Sequences
from spin_core.models.attention import PACKED, Unsupported
from spin_core.models.packing import Rows, packed_rows, padded_rows

log = logging.getLogger("spin_core")

_SAFE_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
"""The kinds of layers in which tokens meet in attention only. Others carry a state along the row."""


def enable_packing(model: PreTrainedModel, implementation: str = PACKED) -> bool:
    """Make a model take packed rows, if it can. Returns whether it does; if not, the log has the reason."""
    reason = why_not_packed(model, implementation)
    if reason is not None:
        log.info("%s cannot take packed rows (%s): its rows are padded", type(model).__name__, reason)
    return reason is None


def why_not_packed(model: PreTrainedModel, implementation: str = PACKED) -> str | None:
    """Why a model cannot take packed rows; None if it can, and then it takes no others from now on."""
    kinds: Any = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if unsafe := sorted(set(kinds) - set(_SAFE_LAYERS)):
        return f"it has layers of {' and '.join(unsafe)}"
    own_implementation = model.config._attn_implementation
    # Two responses to one prompt, and a group of its own. The first response is at tokens 3 and 4 of the packed row.
    prompt, responses = [1, 2, 3], [[4, 5], [5, 4, 6]]
    sequences = Sequences.of([prompt] * 2 + [[3]], [*responses, [6, 5, 4]])
    first_response = slice(3, 5)
    with torch.no_grad():
        plain = model.base_model(**padded_rows(sequences, np.arange(3)).to(model.device).model_inputs())[0]
        want_TH = torch.cat([plain[0, :5], plain[1, 3:6], plain[2, :4]])
    try:
        model.set_attn_implementation(implementation)
        rows = packed_rows(sequences, np.arange(3), np.array([0, 0, 1])).to(model.device)
        have_TH, influence_tH = _hidden_states_and_influence(model, rows, first_response)
        tolerance = 0.1 if have_TH.dtype == torch.bfloat16 else 1e-3
        is_same = torch.allclose(have_TH, want_TH, rtol=tolerance, atol=tolerance * float(want_TH.abs().max()))
        if is_same and not influence_tH.any():
            return None
        reason = "a response would see another one" if is_same else "its hidden states would differ"
    except (Unsupported, TypeError, ValueError) as error:
        reason = str(error)
    model.set_attn_implementation(own_implementation)
    return reason


def _hidden_states_and_influence(model: PreTrainedModel, rows: Rows, tokens: slice) -> tuple[Tensor, Tensor]:
    """A packed row's hidden states, (T, H), and the influence of some of its tokens on all others, (t, H).

    The influence is the gradient of the other tokens' hidden states by these tokens' embeddings. Where no path leads
    from these tokens to the others it is zero to the bit, whatever rounding does. So it also notices a path whose
    effect is too small to see in bfloat16.
    """
    embeddings: list[Tensor] = []

    def watch(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        embeddings.append(embedded.detach().requires_grad_())
        return embeddings[-1] * 1  # a copy, because the next layer may change it in place

    hook = model.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            hidden_TH: Tensor = model.base_model(**rows.model_inputs())[0][0]
            # Each feature has another weight, because a final norm makes the plain sum of all features constant.
            weights_TH = torch.arange(hidden_TH.numel(), device=hidden_TH.device).view_as(hidden_TH).cos()
            weights_TH[tokens] = 0
            (grad_1TH,) = torch.autograd.grad((hidden_TH * weights_TH).sum(), embeddings[0])
    finally:
        hook.remove()
    return hidden_TH.detach(), grad_1TH[0, tokens]
