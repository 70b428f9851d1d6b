"""Responses as text: what ends them, and the way from token ids back to text."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Ends(NamedTuple):
    """What ends a response."""

    ids: tuple[int, ...] = ()
    """Tokens."""
    strings: tuple[str, ...] = ()
    """Texts of several tokens."""


def decode_responses(
    tokenizer: Any, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], ends: Ends | None = None
) -> list[str]:
    """Responses as text, without special tokens, and without the end in `ends`, which may be an ordinary token.

    Each is decoded after its prompt. By itself, a response would lose its first space with many tokenizers.
    """
    if ends is not None:
        texts = decode_responses(tokenizer, prompt_ids, [_without_end(ids, ends) for ids in response_ids])
        return [_before_first(text, ends.strings) for text in texts]
    wholes = [[*before, *after] for before, after in zip(prompt_ids, response_ids, strict=True)]
    prompts, texts, alone = (
        tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in ([list(ids) for ids in prompt_ids], wholes, [list(ids) for ids in response_ids])
    )
    # Half a character at a prompt's end is written differently once its other half follows. Then the prompt's text is
    # not the beginning of the whole, and the response is decoded by itself.
    return [
        text.removeprefix(prompt) if text.startswith(prompt) else bare
        for prompt, text, bare in zip(prompts, texts, alone, strict=True)
    ]


def _without_end(ids: Sequence[int], ends: Ends) -> Sequence[int]:
    return ids[:-1] if len(ids) and ids[-1] in ends.ids else ids


def _before_first(text: str, ends: Sequence[str]) -> str:
    """The text up to where the first of these texts begins."""
    return text[: min((place for place in map(text.find, ends) if place >= 0), default=len(text))]
