"""One small model of each family of attention, and sequences for them."""

import copy

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from spin_core.data.sequences import Sequences
from spin_core.models.logps import ResponseLogps
from spin_core.models.vocabulary_loss import ItemLosses

SMALL = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


WIDE = {
    **SMALL, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


FAMILIES = {
    "llama": LlamaConfig(**WIDE),
    "mistral": MistralConfig(**WIDE, sliding_window=None),
    "mistral with a window": MistralConfig(**WIDE, sliding_window=4),
    "qwen2": Qwen2Config(**WIDE),
    "qwen3": Qwen3Config(**WIDE, head_dim=8),
    "gemma": GemmaConfig(**WIDE, head_dim=8),
    "gemma3 with a window in some layers": Gemma3TextConfig(
        **WIDE, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


REAL = [[20, 21, 22, 23, 24, 2], [22], [23, 24, 25, 26, 27, 2]]


GENERATED = [[30, 2], [31, 32, 33, 34, 35, 36, 37, 38], []]


SEQUENCES = Sequences.of(PROMPTS * 2, REAL + GENERATED)


TOGETHER, APART = np.array([0, 1, 2, 0, 1, 2]), np.arange(6)


WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.0, 3.0, -1.0])


def model_of(config) -> PreTrainedModel:
    """A random model whose probabilities are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


def values_and_gradients(logps: ResponseLogps, rows) -> list[torch.Tensor]:
    """Of six items that are one response each."""
    weights = WEIGHTS.to(rows.responses_S.device)
    losses = ItemLosses(rows.responses_S[None].cpu().numpy(), lambda logps_Pb, items: weights[items] * logps_Pb[0])
    loss, logps_S = logps(rows, losses)
    return [logps_S, *torch.autograd.grad(loss, list(logps.model.parameters()))]
