"""Packed rows against plain ones, in every family of models: the same log-probabilities, the same gradients."""

import copy
import logging

import numpy as np
import pytest
import torch
from attention_families import (
    APART,
    FAMILIES,
    SEQUENCES,
    TOGETHER,
    WIDE,
    model_of,
    values_and_gradients,
)
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Lfm2Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from spin_core.models import attention
from spin_core.models.attention import PACKED
from spin_core.models.logps import ResponseLogps
from spin_core.models.packing import packed_rows, padded_rows

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


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_what_plain_ones_give_with_and_without_shared_prompts(family):
    want = values_and_gradients(ResponseLogps(model_of(FAMILIES[family])), padded_rows(SEQUENCES, np.arange(6)))
    packed = ResponseLogps(model_of(FAMILIES[family]), pack=PACKED)
    assert packed.packed, "this family can be told of packed rows"
    for groups in (TOGETHER, APART):
        have = values_and_gradients(packed, packed_rows(SEQUENCES, np.arange(6), groups))
        for one, other in zip(have, want, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


def test_a_response_does_not_see_the_other_one():
    packed = ResponseLogps(model_of(FAMILIES["llama"]), pack=PACKED)
    rows = packed_rows(SEQUENCES, np.arange(6), TOGETHER)
    with torch.no_grad():
        before = packed(rows)
        rows.input_ids_NT[0, rows.input_ids_NT[0] >= 30] = 39  # all that was generated
        after = packed(rows)
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:5], after[3:5])


def test_a_model_whose_attention_cannot_be_told_pays_for_padding_and_says_so(caplog):
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


def test_a_window_that_a_model_knows_as_a_mask_alone_is_noticed():
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
        return attention.refusal(AutoModelForCausalLM.from_config(copy.deepcopy(HYBRIDS[kind]), dtype=dtype).eval())

    assert refusal() == f"it has layers of {kind}"
    # And by what it does, where it does not say so: as models begin, so little that bfloat16 rounds it away.
    monkeypatch.setattr(attention, "ATTENTIONS", (*attention.ATTENTIONS, kind))
    said = "a response would see another one"
    assert refusal() in (said, "its hidden states would be others") if dtype == torch.float32 else refusal() == said


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_that_some_tokens_share_are_no_way_from_one_response_to_another(dtype):
    config = Qwen3MoeConfig(**WIDE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    assert attention.refusal(model_of(config).to(dtype)) is None


def test_recomputed_layers_see_the_same_rows():
    from spin_core.config.train import TrainConfig
    from spin_core.training.loop import prepare

    results = []
    for recompute in (False, True):
        packed = ResponseLogps(model_of(FAMILIES["llama"]), pack=PACKED)
        prepare(packed.model, TrainConfig(gradient_checkpointing=recompute))
        results.append(values_and_gradients(packed, packed_rows(SEQUENCES, np.arange(6), TOGETHER)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
