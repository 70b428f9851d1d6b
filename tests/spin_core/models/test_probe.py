"""Asking a tiny random model, in place of one whose weights are elsewhere, whether it can take packed rows."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from spin_core.models import probe

LLAMA_3 = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256, max_position_embeddings=131072, bos_token_id=128000, eos_token_id=128001,
    rope_parameters={
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (LLAMA_3, ""),
        (MistralConfig(), ""),
        (Qwen2Config(use_sliding_window=True), ""),
        (Qwen3MoeConfig(), ""),
        (Gemma3TextConfig(), ""),
        (GPT2Config(), ""),
        (Gemma2Config(), "Gemma2Attention asks for softcap"),
        (Gemma2Config(attn_logit_softcapping=None), ""),
        (GptOssConfig(), "GptOssAttention asks for s_aux"),
        (Lfm2Config(full_attn_idxs=[2]), "it has layers of conv"),
        (MambaConfig(), None),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "vocab_size") else "",
)
def test_a_configuration_is_enough_to_know(settings, says):
    assert probe.why_not_packed(settings) == says


def test_a_tiny_model_keeps_what_attention_depends_on():
    model = probe.tiny_model(LLAMA_3)
    assert sum(weight.numel() for weight in model.parameters()) < 5_000_000
    assert (model.config.head_dim, model.config.num_attention_heads, model.config.num_key_value_heads) == (128, 4, 2)
    gemma = probe.tiny_model(Gemma2Config(sliding_window=100)).config
    assert (gemma.attn_logit_softcapping, gemma.sliding_window) == (50.0, 100)
    assert gemma.layer_types == ["sliding_attention", "full_attention"]
    assert probe.tiny_model(Gemma2Config(num_key_value_heads=1)).config.num_key_value_heads == 1


def test_the_probe_changes_neither_the_configuration_nor_random_numbers():
    before, state = Gemma2Config().to_dict(), torch.get_rng_state()
    settings = Gemma2Config()
    probe.why_not_packed(settings)
    assert settings.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)
