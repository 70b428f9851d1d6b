"""Thoughts in turns, and whether a template writes the text of a turn around them."""

import re
from typing import Any

Turn = dict[str, Any]
"""A turn of a conversation as a template sees it."""

KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn's thoughts in data and templates, in the order in which they count."""

_OPENING, _CLOSING = "<think>", "</think>"

_THOUGHT = re.compile(rf"{_OPENING}(.*?){_CLOSING}", re.DOTALL)


def thoughts_in(turn: Turn) -> list[str]:
    """The thoughts of an assistant's turn, next to its text or in it."""
    thoughts = [str(turn[key]) for key in KEYS if key in turn][:1] + _THOUGHT.findall(turn["content"])
    return [thought.strip() for thought in thoughts if thought.strip()]


def is_unclosed(text: str) -> bool:
    """Whether a response begins with a thought that does not end."""
    return text.lstrip().startswith(_OPENING) and _CLOSING not in text


def answers_with(answer: Turn, prompt: str, tail: str) -> bool:
    """Whether all text of an answer is written, and none of it as a thought. White space does not count.

    Args:
        answer: the assistant's turn.
        prompt: what the template writes for generation, which may open a thought.
        tail: what follows it in the answered conversation.
    """
    opening = _OPENING if prompt.rstrip().endswith(_OPENING) else ""
    return _outside_thoughts(answer["content"]) in _outside_thoughts(opening + tail)


def prompts_with(turns: list[Turn], prompt: str) -> bool:
    """Whether a prompt has the text of all its turns, with their thoughts or without them.

    Results of tools are left out here, since templates write them in forms of their own.
    """
    written = _squeeze(prompt)
    texts = [turn["content"] for turn in turns if turn["role"] != "tool"]
    return all(_squeeze(text) in written or _outside_thoughts(text) in written for text in texts)


def _outside_thoughts(text: str) -> str:
    return _squeeze(_THOUGHT.sub("", text))


def _squeeze(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())
