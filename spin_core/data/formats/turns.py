"""One turn of a conversation, under the names that chat templates use: `role`, `content`, and some others.

A turn has `role` and `content`, or ShareGPT's `from` and `value`. Files that Arrow writes give every turn the keys of
all turns and fill them with null, so a key without a value counts as absent here, at any depth.
"""

import json
from typing import Any

from spin_core.data.chat import Message
from spin_core.errors import DataError

Row = dict[str, Any]

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

_LEARNED = ("weight", "train", "training", "trainable", "loss")
"""Keys of a turn that say whether it is to be learned."""

UNLEARNED = "unlearned"
"""The key of an assistant's turn that is context alone. No template sees it."""

_WORDS = {"true": 1, "yes": 1, "": 1, "false": 0, "no": 0}
"""What words in place of such a number mean."""

_DEEPEST = 50
"""How deep lists and dictionaries in a turn may be nested."""


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
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise DataError(f"{column} is {describe(value)}, not text or a list of turns: fix that row")
    return [_turn_of(turn, column) for turn in turns if turn is not None]


def text_of(row: Row, column: str) -> str:
    """A column's text; empty if there is none. Raises `DataError` if it is something else."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{column} is {describe(value)}, not text: fix that row")
    _check_characters(value, column)
    return value


def describe(value: Any) -> str:
    """A value as it appears in a message."""
    if value is None:
        return "missing"
    try:
        text = repr(value)
    except RecursionError:
        text = "…"
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '…'}"


def parse_json(text: str, column: str) -> Any:
    """The value of a text that is JSON. Raises `DataError` if it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{column} is {describe(text)}, which is not JSON: fix that row") from error


def without_nulls(value: Any, column: str, depth: int = 0) -> Any:
    """A JSON value without the keys that have no value. Raises `DataError` for text that cannot be written."""
    if depth > _DEEPEST:
        raise DataError(f"{column} is nested more than {_DEEPEST} levels deep: fix that row")
    if isinstance(value, dict):
        return {key: without_nulls(item, column, depth + 1) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item, column, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return text_of({column: value}, column)


def _turn_of(turn: Any, column: str) -> Message:
    """One turn under the names that templates use."""
    if not isinstance(turn, dict):
        raise DataError(f"{column} holds {describe(turn)}, not a turn with role and content: fix that row")
    keys = {key: value for key, value in turn.items() if value is not None}
    role_key, content_key = ("role", "content") if "role" in keys else ("from", "value")
    if role_key not in keys:
        raise DataError(f"{column} holds {describe(turn)}, not a turn with role and content: fix that row")
    own_role = str(keys[role_key]).lower()
    role = _ROLES.get(own_role)
    if role is None:
        raise Dropped("unknown-role")
    result: Message = {"role": role, "content": _content_of(keys, content_key)}
    for key in _KEPT:
        if keys.get(key) not in (None, "", []):
            result[key] = without_nulls(keys[key], key)
    if role == "assistant":
        _take_calls(result, keys, own_role)
        if not _is_learned(keys):
            result[UNLEARNED] = True
    return result


def _content_of(keys: Row, column: str) -> str:
    """A turn's text. Text in several parts is joined; parts of other kinds cannot be trained on."""
    parts = keys.get(column)
    if not isinstance(parts, list):
        return text_of(keys, column)
    texts = []
    for part in parts:
        if isinstance(part, dict):
            if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
                raise Dropped("not-text")
            texts.append(text_of(part, "text"))
        elif part is not None:
            texts.append(text_of({column: part}, column))
    return "\n".join(texts)


def _take_calls(turn: Message, keys: Row, role: str) -> None:
    """Write an assistant's calls of tools as `tool_calls`, with arguments as values, as templates expect them."""
    calls = turn.pop("tool_calls", None)
    if role in _CALLS:
        calls, turn["content"] = parse_json(turn["content"], role), ""
    elif calls is None and keys.get("function_call"):
        calls = without_nulls(keys["function_call"], "function_call")
    if isinstance(calls, str):
        calls = parse_json(calls, "tool_calls")
    if calls:
        turn["tool_calls"] = [_call_of(call) for call in (calls if isinstance(calls, list) else [calls])]


def _call_of(call: Any) -> Row:
    """One call of a tool, in the form of OpenAI's API."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"tool_calls holds {describe(call)}, not a call with a function's name: fix that row")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments, "arguments") if arguments.strip() else {}
    own = {"id": call["id"]} if "id" in call else {}
    return {**own, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _is_learned(keys: Row) -> bool:
    """Whether the model may learn a turn: nothing in it says that it may not."""
    for key in _LEARNED:
        value = keys.get(key)
        if value is None or (key == "loss" and not isinstance(value, bool)):
            continue
        number = _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
        try:
            number = float(number)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{key} is {describe(value)}, not a number, true or false: fix that row") from error
        if not number > 0:
            return False
    return True


def _check_characters(text: str, column: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{column} holds half a character (a lone surrogate): fix that row") from error
