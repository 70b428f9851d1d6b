"""The random model that the benchmarks measure with, and a tokenizer of one word a token."""

from pathlib import Path
from typing import Any


def save_bare_model(
    folder: Path, vocabulary: int, seed: int, *, gpu: bool = False, weights: bool = True, **shape: Any
) -> None:
    """A Llama of this shape, its embeddings tied, as `from_pretrained` reads it. BOS is 1, EOS 2, padding 0.

    In float32; made on a GPU, in bfloat16. Without `weights` its configuration alone is written.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        **{"tie_word_embeddings": True, "dtype": torch.bfloat16 if gpu else torch.float32, **shape},
    )  # fmt: skip
    if weights:
        with torch.device("cuda" if gpu else "cpu"):
            LlamaForCausalLM._from_config(config, dtype=config.dtype).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
