"""A judge small enough for tests: a real Llama, served by a real server, that closes every answer with a verdict.

Its network is a table of which word follows which: attention and MLP add nothing, so a word's embedding goes straight
to the output. What it says hangs on the last word of the prompt, and that is written by its chat template.
"""

from pathlib import Path

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<good>", "<bad>", "<first>", "<second>", "[[9]]", "[[3]]", "[[A]]", "[[B]]"]
FOLLOWS = {"<good>": "[[9]]", "<bad>": "[[3]]", "<first>": "[[A]]", "<second>": "[[B]]"}

TEMPLATE = (
    "{% set said = messages[-1]['content'] %}{{ said }} "
    "{% if 'assistant B' in said %}"
    "{% if 'PERSON' in said.split('the answer of assistant B')[0] %}<first>{% else %}<second>{% endif %}"
    "{% elif said | length is odd %}<good>{% else %}<bad>{% endif %}"
)
"""It chooses the answer with PERSON, or else the second, and grades by whether the prompt's length is odd."""


def grade(prompt: str) -> float:
    """The grade that it gives."""
    return 9.0 if len(prompt) % 2 else 3.0


def save_judge(folder: Path) -> Path:
    """Write the model and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(WORDS[:8])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, chat_template=TEMPLATE, **names).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), 64))
        model.lm_head.weight.zero_()
        for i, word in enumerate(WORDS):
            model.lm_head.weight[WORDS.index(FOLLOWS.get(word, "</s>")), i] = 10.0
    model.save_pretrained(folder)
    return folder
