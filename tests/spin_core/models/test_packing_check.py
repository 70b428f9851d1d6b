"""Models that cannot take packed rows, and how that is noticed."""

import copy
import logging

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Lfm2Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from spin_core.models import packing_check
from spin_core.models.attention import PACKED
from spin_core.models.logps import ResponseLogps
from spin_core.models.packing import padded_rows
from spin_core.models.packing_check import why_not_packed
from tests.support.models.attention_families import FAMILIES, SEQUENCES, WIDE, model_of

HYBRIDS = {
    "conv": Lfm2Config(**WIDE, layer_types=["conv", "full_attention"]),
    "linear_attention": Qwen3NextConfig(
        **WIDE, head_dim=8, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    ),
}  # fmt: skip
"""Families with layers that carry a state along the row."""


DTYPES = [torch.float32, torch.bfloat16]


def test_a_model_with_unknown_attention_uses_padding_and_reports_it(caplog):
    config = Gemma2Config(**WIDE, head_dim=8, attn_logit_softcapping=1.0, attn_implementation="eager")
    model = model_of(config)
    with caplog.at_level(logging.INFO, "spin_core"):
        logps = ResponseLogps(model, pack=PACKED)
    assert not logps.packed
    assert "Gemma2ForCausalLM cannot take packed rows (Gemma2Attention asks for softcap): its rows are padded" in (
        caplog.text
    )
    with torch.no_grad():
        want = ResponseLogps(model_of(config))(padded_rows(SEQUENCES, np.arange(6)))
        assert torch.equal(logps(padded_rows(SEQUENCES, np.arange(6))), want)


def test_a_window_that_exists_only_as_a_mask_is_detected():
    model = model_of(FAMILIES["mistral with a window"])

    class Hidden:
        """The model's configuration, as one that hands its attention no window."""

        sliding_window = None

        def __getattr__(self, name):
            return getattr(model.config, name)

    for layer in model.model.layers:
        layer.self_attn.config = Hidden()
    assert not ResponseLogps(model, pack=PACKED).packed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_state_that_runs_on_from_one_response_to_the_next_is_noticed_in_either_precision(kind, dtype, monkeypatch):
    def refusal() -> str | None:
        torch.manual_seed(0)
        return why_not_packed(AutoModelForCausalLM.from_config(copy.deepcopy(HYBRIDS[kind]), dtype=dtype).eval())

    assert refusal() == f"it has layers of {kind}"
    # And by what it does, where it does not say so: as models begin, so little that bfloat16 rounds it away.
    monkeypatch.setattr(packing_check, "_SAFE_LAYERS", (*packing_check._SAFE_LAYERS, kind))
    reason = "a response would see another one"
    assert refusal() in (reason, "its hidden states would differ") if dtype == torch.float32 else refusal() == reason


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_that_some_tokens_share_are_no_way_from_one_response_to_another(dtype):
    config = Qwen3MoeConfig(**WIDE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    assert why_not_packed(model_of(config).to(dtype)) is None
