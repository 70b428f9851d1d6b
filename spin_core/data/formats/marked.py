"""Texts with a mark before each turn, as in Guanaco's data: "### Human: … ### Assistant: …"."""

import re
from collections.abc import Sequence
from typing import Any

from spin_core.data.chat import Message
from spin_core.data.formats.turns import Dropped

_MARK = re.compile(r"### (Human|User|Assistant|System):")

_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant", "System": "system"}


def has_mark(text: Any) -> bool:
    """Whether a value is text that begins with a mark."""
    return isinstance(text, str) and _MARK.match(text.lstrip()) is not None


def mostly_marked(texts: Sequence[Any]) -> bool:
    """Whether most of the texts begin with a mark."""
    return 2 * sum(has_mark(text) for text in texts) > len(texts)


def split_marked(text: str) -> list[Message]:
    """The turns of a text with a mark before each. Raises `Dropped` if it does not begin with one."""
    before, *parts = _MARK.split(text)
    if before.strip() or not parts:
        raise Dropped("without-marks")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _ROLES[speaker], "content": content.strip()} for speaker, content in turns]
