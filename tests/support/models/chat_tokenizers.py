"""Tokenizers for the chat templates in `tests/fixtures/templates`, which are written in the style of models' own."""

from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.support.helpers import ROOT

TEMPLATES = ROOT / "tests" / "fixtures" / "templates"

SPECIALS = (
    *("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
)

TEXT_MARKERS = ("<think>", "</think>")
"""Tokens that are not special: they are a part of texts."""


def chat_tokenizer(family: str, *, not_special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the chat template of a family, which adds a BOS by itself as many do.

    Args:
        family: a file of the folder, without its suffix.
        not_special: special tokens that are to be ordinary ones.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_backend(not_special), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text("utf-8")
    return tokenizer


@cache
def _backend(not_special: tuple[str, ...]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["What is 2 + 2?\n\nIt is 4. I think it is four.\n"] * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS if name not in not_special])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in (*not_special, *TEXT_MARKERS)])
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return tokenizer
