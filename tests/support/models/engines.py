"""Small models and requests, for tests of engines."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from spin_core.inference.engine import Request
from spin_core.inference.sampling import Sampling

VOCABULARY = 23


GREEDY = Sampling(temperature=1e-6, top_p=1.0, top_k=0, max_new_tokens=12)


AS_IS = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=12)


def llama(context=128):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=128, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def mistral():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=6, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def prompts(count, longest=40, seed=0):
    """Random prompts of 1 to `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def requests(count, **kwargs):
    return [Request(ids, seed=i) for i, ids in enumerate(prompts(count, **kwargs))]


def answers(engine, requests):
    """Answers in the requests' order; each came exactly once."""
    by_index = dict(engine.answer(requests))
    assert len(by_index) == len(requests)
    return [by_index[i] for i in range(len(requests))]
