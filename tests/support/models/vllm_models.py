"""Small models for tests of vLLM: heads as wide as its kernels want them."""

from pathlib import Path

import torch

from spin_core.models.adapters import Adapter, copy_as_stacked, write_adapter
from spin_core.models.files import ADAPTERS
from tests.support.helpers import character_tokenizer

EOS = 2


def save_model(folder: Path, context: int = 128) -> Path:
    """A random Llama whose answers end after some ten tokens. The context changes nothing but itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context, initializer_range=0.3, bos_token_id=1, eos_token_id=EOS,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_stacked(model: Path, folder: Path) -> Path:
    """A version with two adapters on the model's weights."""
    copy_as_stacked(model, folder)
    layers = [f"model.layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "o_proj")]
    for number, rank in ((1, 4), (2, 3)):
        generator = torch.Generator().manual_seed(number)
        factors = {
            layer: tuple(torch.randn(shape, generator=generator) * 0.3 for shape in ((rank, 64), (64, rank)))
            for layer in layers
        }
        config = {
            "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["o_proj", "q_proj"],
            "task_type": "CAUSAL_LM", "bias": "none",
        }  # fmt: skip
        write_adapter(Adapter(config, factors), folder / ADAPTERS / f"{number:02d}")
    return folder
