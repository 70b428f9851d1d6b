"""One small model for each way in which models make their logits."""

from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.support.models.wide_model import SMALL, WIDE


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**WIDE))


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def gemma2() -> Gemma2ForCausalLM:
    """Its logits are capped: 1.5 * tanh(logits / 1.5)."""
    return Gemma2ForCausalLM(Gemma2Config(**WIDE, head_dim=8, final_logit_softcapping=1.5, attn_implementation="eager"))


def cohere() -> CohereForCausalLM:
    """Its logits are scaled."""
    return CohereForCausalLM(CohereConfig(**WIDE, logit_scale=0.3))


def granite() -> GraniteForCausalLM:
    """Its logits are divided."""
    return GraniteForCausalLM(GraniteConfig(**WIDE, logits_scaling=7.0))
