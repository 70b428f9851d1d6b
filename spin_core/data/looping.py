"""Whether a response goes round in circles, judged by its token ids."""

from collections.abc import Sequence

_PHRASE_TOKENS = 8
"""Tokens in a phrase."""

_LOOPING_SHARE = 0.5
"""A response loops if more than this share of its phrases occurred in it before."""

_MIN_PHRASES = 24
"""Responses with fewer phrases than this are too short to judge."""


def is_looping(ids: Sequence[int]) -> bool:
    """Whether a response repeats itself over and over."""
    return len(ids) - _PHRASE_TOKENS + 1 >= _MIN_PHRASES and repeated_share(ids) > _LOOPING_SHARE


def repeated_share(ids: Sequence[int], phrase: int = _PHRASE_TOKENS) -> float:
    """The share of a response's phrases of `phrase` tokens that occurred in it before, from 0 to 1.

    This is seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319), with n = 8 instead of 4: on a character vocabulary,
    phrases of four tokens repeat in any long honest text. Text that goes round and round is near 1.
    """
    phrases = list(zip(*(ids[start:] for start in range(phrase)), strict=False))
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0
