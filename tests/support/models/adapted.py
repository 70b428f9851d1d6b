"""Small models with adapters that change their logits."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from spin_core.config.model import ModelConfig
from spin_core.config.train import LoraConfig
from spin_core.models.loading import load_model
from spin_core.training import lora
from tests.support.helpers import character_tokenizer

CPU = ModelConfig(device="cpu")

BF16 = ModelConfig(device="cpu", dtype="bfloat16")

INPUT_IDS = torch.tensor([[5, 9, 40, 77, 12, 30]])


@pytest.fixture
def gpt2(tmp_path):
    """A GPT-2, whose layers keep their weights transposed and whose output is tied to its embeddings."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path / "gpt2", character_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_trained_adapter(folder, config=CPU, seed=0, **settings):
    """A model with an adapter that does something, what `attach` returned, and the tensors of a stepper."""
    settings = LoraConfig(**{"rank": 2, "alpha": 8.0, **settings})
    model = load_model(folder, config)
    adapter_config = lora.attach(model, settings, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model, adapter_config, {f"weight/{name}": weight.detach().float() for name, weight in weights.items()}


def publish_adapter(folder, start, t, config=CPU, **settings):
    """The version that iteration `t` makes of an adapter; the model as it was in training."""
    model, adapter_config, tensors = with_trained_adapter(start, config, seed=t, **settings)
    settings = LoraConfig(**{"rank": 2, "alpha": 8.0, **settings})
    lora.publish(
        folder, adapter=lora.trained_adapter(adapter_config, tensors), start=start, t=t, lora=settings, model=config
    )
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=INPUT_IDS).logits.float()


def assert_same_logits(model, expected, tolerance=1e-5):
    torch.testing.assert_close(logits(model), logits(expected), atol=tolerance, rtol=0)
