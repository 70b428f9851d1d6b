"""What several test files share: a tiny model, and where real data may lie."""

import os
from pathlib import Path

# Before torch and transformers are imported: two threads for tiny tensors cost more than one, and no test may
# reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The root of the repository."""
SUPPORT = Path(__file__).resolve().parent
"""The folder of helpers that several tests share."""

ALPHABET = "".join(chr(code) for code in range(32, 127)) + "\n"

HOLDS = """
import sys
from pathlib import Path
from spin_core.store.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
"""Holds a lineage's lock until its input ends."""


def data_folder(*parts: str) -> Path:
    """A file or folder of the real data; skips the test where it is absent."""
    root = Path(os.environ.get("SPIN_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real data at {path}: set SPIN_TEST_DATA")
    return path


def character_tokenizer(specials: tuple[str, ...] = ("<pad>", "<s>", "</s>", "<unk>"), **kwargs: str):
    """A tokenizer with one token a character of printable ASCII and newline, after the special tokens.

    `kwargs` go to `PreTrainedTokenizerFast`: `chat_template`, or other names for the special tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **kwargs}
    words = [*specials, *ALPHABET]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{key: name for key, name in names.items() if name})


def save_tiny_model(folder: Path, tokenizer, seed: int = 0) -> Path:
    """A random Llama of about 9,000 parameters that fits `tokenizer`, as `from_pretrained` reads it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and a character tokenizer (100 tokens, pad, BOS, EOS, no chat template)."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"), character_tokenizer())
