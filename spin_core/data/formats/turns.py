"""One turn of a conversation, under the names that chat templates use: `role`, `content`, and some others.

A turn has `role` or `from`, and `content` or `value`. Files that Arrow writes give every turn the keys of
all turns and fill them with null, so a key without a value counts as absent here, at any depth.
"""

from typing import Any

from spin_core.data.chat import Message
from spin_core.data.formats.tools import calls_of
from spin_core.data.formats.values import Row, describe, text_of, without_nulls
from spin_core.errors import DataError

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}

_CALLS = ("function_call", "tool_call")
"""Roles of turns whose text is a call of a tool, as JSON."""

_KEPT = ("name", "reasoning", "reasoning_content", "thinking", "tool_calls", "tool_call_id")
"""Other keys of a turn that a chat template may write."""

FLAGS = ("weight", "train", "training", "trainable", "loss")
"""Keys of a turn, or of a row, that say whether it is to be learned."""

UNLEARNED = "unlearned"
"""The key of an assistant's turn that is context alone. No template sees it."""

_TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a message's parts that are text."""

_WORDS = {"true": 1, "yes": 1, "": 1, "false": 0, "no": 0}
"""What words in place of such a number mean."""


class Dropped(Exception):
    """A row without a usable conversation. The message is the reason under which it is counted."""


def turns_of(row: Row, column: str, role: str) -> list[Message]:
    """A column's turns. Bare text is one turn of `role`, and so is a missing value, whose text is empty.

    Raises:
        DataError: a value is of the wrong type.
        Dropped: a turn cannot be used.
    """
    value = row.get(column)
    if value is None or isinstance(value, str):
        return [{"role": role, "content": text_of(row, column)}]
    turns = _turns_of_lists(value, column) or [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise DataError(f"{column} is {describe(value)}, not text or a list of turns: fix that row")
    return [_turn_of(turn, column) for turn in turns if turn is not None]


def _turns_of_lists(value: Row, column: str) -> list[Row]:
    """The turns of an object that holds a list for each key, as Arrow writes sequences; none if it does not."""
    lists = {key: items for key, items in value.items() if items is not None}
    roles = lists.get("role", lists.get("from"))
    if not isinstance(roles, list) or not all(isinstance(items, list) for items in lists.values()):
        return []
    if any(len(items) != len(roles) for items in lists.values()):
        raise DataError(f"{column} has lists of different lengths: fix that row")
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def join_turns(prompt: list[Message], response: list[Message]) -> list[Message]:
    """A prompt's turns followed by the response's, which may repeat those of the prompt.

    Raises `Dropped` if the response has a prompt of its own.
    """
    if not response or response[0]["role"] == "assistant":
        return prompt + response
    system, question = _split_system(prompt)
    own_system, turns = _split_system(response)
    if system and own_system and _texts_of(system) != _texts_of(own_system):
        raise Dropped("several-system-prompts")
    if _repeats(turns, question):
        return (own_system or system) + turns
    if question[-1]["role"] == "user" and turns[:1] and turns[0]["role"] == "user":
        raise Dropped("two-prompts")
    return (system or own_system) + question + turns


def _split_system(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system turn at the beginning, if there is one, and the other turns."""
    number = 1 if turns and turns[0]["role"] == "system" else 0
    return turns[:number], turns[number:]


def _repeats(turns: list[Message], question: list[Message]) -> bool:
    """Whether the question's turns follow each other somewhere in these turns. One without text is everywhere."""
    texts, wanted = _texts_of(turns), _texts_of(question)
    starts = range(len(texts) - len(wanted) + 1)
    return not any(text for _, text in wanted) or any(texts[at : at + len(wanted)] == wanted for at in starts)


def _texts_of(turns: list[Message]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"].strip()) for turn in turns]


def is_role(value: Any) -> bool:
    """Whether a value is the name of a role."""
    return isinstance(value, str) and value.strip().lower() in _ROLES


def _turn_of(turn: Any, column: str) -> Message:
    """One turn under the names that templates use."""
    if not isinstance(turn, dict):
        raise DataError(f"{column} holds {describe(turn)}, not a turn with role and content: fix that row")
    keys = {key: value for key, value in turn.items() if value is not None}
    role_key, names = ("role", ("content", "value")) if "role" in keys else ("from", ("value", "content"))
    if role_key not in keys:
        raise DataError(f"{column} holds {describe(turn)}, not a turn with role and content: fix that row")
    content_key = next((name for name in names if name in keys), names[0])
    own_role = str(keys[role_key]).strip().lower()
    role = _ROLES.get(own_role)
    if role is None:
        raise Dropped("unknown-role")
    if content_key not in keys and role in ("system", "tool"):
        raise Dropped("turn-without-content")
    result: Message = {"role": role, "content": _content_of(keys, content_key)}
    for key in _KEPT:
        if keys.get(key) not in (None, "", []):
            result[key] = without_nulls(keys[key], key)
    if role == "assistant":
        _take_calls(result, keys, own_role)
        if not all(may_learn(key, keys.get(key)) for key in FLAGS):
            result[UNLEARNED] = True
    return result


def _content_of(keys: Row, column: str) -> str:
    """A turn's text. Text in several parts is joined as most templates do, with nothing in between.

    Parts of other kinds cannot be trained on.
    """
    parts = keys.get(column)
    if not isinstance(parts, list):
        return text_of(keys, column)
    texts = []
    for part in parts:
        if isinstance(part, dict):
            if part.get("type", "text") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
                raise Dropped("not-text")
            texts.append(text_of(part, "text"))
        elif part is not None:
            texts.append(text_of({column: part}, column))
    return "".join(texts)


def _take_calls(turn: Message, keys: Row, role: str) -> None:
    """Write an assistant's calls of tools as `tool_calls`."""
    calls = turn.pop("tool_calls", None) or keys.get("function_call")
    if role in _CALLS:
        calls, turn["content"] = turn["content"], ""
    if calls and (written := calls_of(calls)):
        turn["tool_calls"] = written


def may_learn(key: str, value: Any) -> bool:
    """Whether the value of a key in `FLAGS` allows to learn a turn. Raises `DataError` if it says neither."""
    if value is None or (key == "loss" and not isinstance(value, bool)):
        return True
    number = _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
    try:
        number = float(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{key} is {describe(value)}, not a number, true or false: fix that row") from error
    # NaN is what pandas writes where there is no value.
    return not number <= 0
