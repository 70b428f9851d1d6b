"""Texts with a mark before each turn, as in Guanaco's data: "### Human: … ### Assistant: …".

The marks are those of a family, and within a text they are written as before its first question and its first answer.
So "### User: name" in an answer is a part of it, where questions begin with "### Human:".
"""

import re
from collections.abc import Sequence
from typing import Any

from spin_core.data.chat import Message
from spin_core.data.formats.turns import Dropped

_SPEAKERS = "human|user|prompter|assistant|gpt|bot|ai|system"

_FAMILIES = [
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"<\|im_start\|>[ \t]*(\w+)",
        r"<\|start_header_id\|>[ \t]*(\w+)[ \t]*<\|end_header_id\|>",
        r"<start_of_turn>[ \t]*(\w+)",
        rf"<\|({_SPEAKERS})\|>",
        r"\[(/?INST)\]",
        rf"#{{2,4}}[ \t]*({_SPEAKERS})[ \t]*:",
        r"#{2,4}[ \t]*(system|instruction|question|input|context|response|output|answer)[ \t]*(?::|$)",
        # At the beginning of a paragraph, as in HH-RLHF, or of a line.
        rf"(?:\A|(?<=\n\n))[ \t]*({_SPEAKERS})[ \t]*:",
        rf"^[ \t]*({_SPEAKERS})[ \t]*:",
        # On one line, as Vicuna's texts are.
        rf"(?:^|(?<=\s)|(?<=>))({_SPEAKERS}):",
        r"^[ \t]*(question|answer)[ \t]*:",
        r"^[ \t]*(q|a)[ \t]*:",
    )
]
"""The marks of each family. The group is the word that names the role."""

_ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "inst", "instruction", "question", "q"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bot", "ai", "model", "/inst", "response", "output", "answer", "a"), "assistant"
    ),
    **dict.fromkeys(("input", "context"), "input"),
    "system": "system",
}

_FIRST = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
"""Tokens before the first mark."""

_LAST = ("</s>", "<eos>", "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|end_of_text|>", *_FIRST)
"""Tokens at the end of a turn; the last ones begin the next exchange."""

_FRAME = re.compile(r"below is an instruction", re.IGNORECASE)
"""How Alpaca's texts begin. It says what the marks mean, and is left out with them."""

_SYSTEM = re.compile(r"(a|the following is a) (chat|conversation|dialogue|dialog) between ", re.IGNORECASE)
"""How a system prompt without a mark begins."""

_SYSTEM_IN_USER = re.compile(r"<<SYS>>(.*?)<</SYS>>", re.DOTALL)
"""A system prompt within Llama 2's first question."""

_LIKE_MARK = re.compile(r"<\|\w+\|>|<start_of_turn>|\[INST\]|#{2,4}[ \t]*\w+:", re.IGNORECASE)


def divide(text: Any) -> list[Message]:
    """The turns of a text in which marked questions and answers alternate; none if it is not such a text."""
    if not isinstance(text, str):
        return []
    for family in _FAMILIES:
        turns = _turns_by(family, text)
        if _alternate([turn["role"] for turn in turns]):
            return turns
    return []


def looks_marked(text: Any) -> bool:
    """Whether a text begins with a mark, or with something like one."""
    if not isinstance(text, str):
        return False
    text = _trim(text, first=True)
    if _LIKE_MARK.match(text):
        return True
    roles = [[_role_of(mark) for mark in family.finditer(text)] for family in _FAMILIES if family.match(text)]
    # "A: …" by itself is a usual beginning of a text.
    return any(own[0] in ("user", "system") or len({*own}) > 1 for own in roles)


def split_marked(text: str) -> list[Message]:
    """The turns of a text among marked ones. Raises `Dropped` if marks do not divide it into questions and answers."""
    turns = divide(text)
    if turns:
        return turns
    text = _trim(text, first=True)
    family = next((family for family in _FAMILIES if family.match(text)), None)
    if family is None:
        raise Dropped("without-marks")
    has_answer = any(turn["role"] == "assistant" for turn in _turns_by(family, text))
    raise Dropped("marks-out-of-order" if has_answer else "no-response")


def _turns_by(family: re.Pattern[str], text: str) -> list[Message]:
    """The turns of a text that begins with a family's mark, by its own spelling of the marks; none if it does not."""
    text = _trim(text, first=True)
    if not any(start.match(text) for start in (family, _FRAME, _SYSTEM)):
        return []
    marks = _own_marks(family, text)
    if not marks:
        return []
    turns: list[Message] = []
    if _SYSTEM.match(text):
        turns.append({"role": "system", "content": _trim(text[: marks[0].start()])})
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        role, content = _role_of(mark), _trim(text[mark.end() : end])
        if role == "input":
            above = turns[-1]["content"]
            turns[-1]["content"] = f"{above}\n\n{content}" if above and content else above or content
        else:
            turns.append({"role": role, "content": content})
    return _with_system_turn(turns)


def _own_marks(family: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The marks that are written as the text's first of the same role, and an instruction's input."""
    spelling: dict[str, str] = {}
    marks: list[re.Match[str]] = []
    for mark in family.finditer(text):
        role = _role_of(mark)
        if role == "input" and not (marks and _role_of(marks[-1]) == "user"):
            continue
        if spelling.setdefault(role, mark[0].strip()) == mark[0].strip():
            marks.append(mark)
    return marks


def _role_of(mark: re.Match[str]) -> str:
    """The role that a mark names; its own word if that is none."""
    word = mark[1].lower()
    return _ROLES.get(word, word)


def _with_system_turn(turns: list[Message]) -> list[Message]:
    """The turns, with a system prompt in the first question as a turn of its own."""
    system = _SYSTEM_IN_USER.match(turns[0]["content"]) if turns and turns[0]["role"] == "user" else None
    if system is None:
        return turns
    question = {"role": "user", "content": turns[0]["content"][system.end() :].strip()}
    return [{"role": "system", "content": system[1].strip()}, question, *turns[1:]]


def _alternate(roles: Sequence[str]) -> bool:
    """Whether user and assistant take turns after a system prompt or none, with at least one answer."""
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return len(roles) > 1 and all(role == ("user", "assistant")[at % 2] for at, role in enumerate(roles))


def _trim(text: str, *, first: bool = False) -> str:
    """The text without white space and control tokens at its end, or at its beginning where `first`."""
    while True:
        shorter = text.strip()
        for token in _FIRST if first else _LAST:
            shorter = shorter.removeprefix(token) if first else shorter.removesuffix(token)
        if shorter == text:
            return text
        text = shorter
