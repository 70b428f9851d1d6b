"""Tools in conversations: the schemas of a `tools` column, an assistant's calls, and whether a template writes both."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from spin_core.data.formats.values import Row, describe, parse_json, strings_in, without_nulls
from spin_core.errors import DataError

Tools = list[Row]
"""Schemas of tools, in the form of OpenAI's API."""

_NO_CALL: tuple[Row | None, ...] = (None, {}, {"function": {}})
"""What is left of a call that has no value, once the keys without values are left out."""

_NAME, _VALUE, _RESULT = "sentinel_name", "sentinel_value", "sentinel_result"
"""Texts to recognise again in what a template writes."""

_QUESTION: Row = {"role": "user", "content": "?"}

_PARAMETERS = {"type": "object", "properties": {"x": {"type": "string", "description": _VALUE}}, "required": ["x"]}

# Some templates accept ids of nine letters and digits alone.
_ID = "call12345"

_TOOL_TURN: Row = {"role": "tool", "content": _RESULT, "name": _NAME, "tool_call_id": _ID}


def tools_of(value: Any, column: str = "tools") -> Tools | None:
    """The tools in a row's column: a list of schemas, perhaps as JSON; None if there are none.

    Raises `DataError` for anything else.
    """
    if isinstance(value, str):
        value = parse_json(value, column) if value.strip() else None
    if value in (None, [], {}):
        return None
    tools = value if isinstance(value, list) else [value]
    if not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{column} is {describe(value)}, not a list of tools: fix that row")
    written: Tools = [tool for tool in without_nulls(tools, column) if _has_schema(tool)]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in written] or None


def _has_schema(tool: Row) -> bool:
    """Whether anything but its type is left of a tool, once the keys without values are left out."""
    return any(strings_in(tool.get("function", {key: value for key, value in tool.items() if key != "type"})))


def calls_of(value: Any) -> list[Row]:
    """An assistant's calls in the form of OpenAI's API, with arguments as values, as most templates expect them.

    Raises `DataError` if the value is something else.
    """
    if isinstance(value, str):
        value = parse_json(value, "tool_calls") if value.strip() else None
    calls = value if isinstance(value, list) else [value] if value else []
    return [_call_of(call) for call in without_nulls(calls, "tool_calls") if call not in _NO_CALL]


def has_tools(messages: Sequence[Row], tools: Tools | None) -> bool:
    """Whether tools occur in a conversation: schemas, calls or results."""
    return bool(tools) or any(turn["role"] == "tool" or "tool_calls" in turn for turn in messages)


class ToolSupport:
    """What a chat template writes of tools, found by asking it for texts that are recognised again."""

    def __init__(self, apply: Callable[[list[Row], Tools | None], str | None] | None) -> None:
        """Take the function that writes turns and schemas, or returns None; None for a format without tools."""
        self._apply = apply

    def can_write(self, messages: list[Row], tools: Tools | None) -> bool:
        """Whether the template writes the schemas, the calls and the results of a conversation, and accepts it."""
        has_calls = any("tool_calls" in turn for turn in messages)
        return (
            (not tools or self._writes_schemas)
            and (not has_calls or self._form_of_arguments is not None)
            and (not has_tools(messages, None) or self._writes_results)
            and self._writes(messages, tools, [])
        )

    def prepare(self, messages: list[Row]) -> list[Row]:
        """The turns with the arguments of calls in the form that the template expects."""
        if has_tools(messages, None) and self._form_of_arguments == "text":
            return _with_written_arguments(messages)
        return messages

    @cached_property
    def _writes_schemas(self) -> bool:
        function = {"name": _NAME, "description": _RESULT, "parameters": _PARAMETERS}
        tools: Tools = [{"type": "function", "function": function}]
        return self._writes([_QUESTION], tools, [_NAME, _VALUE, _RESULT])

    @cached_property
    def _writes_results(self) -> bool:
        """Whether the template writes results. The calls before them may be in the assistant's text."""
        in_text = [_QUESTION, {"role": "assistant", "content": "."}, _TOOL_TURN]
        return self._form_of_arguments is not None or self._writes(in_text, None, [_RESULT])

    @cached_property
    def _form_of_arguments(self) -> Literal["values", "text"] | None:
        """How the template expects the arguments of calls; None if it does not write calls and their results."""
        call = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": {"x": _VALUE}}}
        turns: list[Row] = [_QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, _TOOL_TURN]
        if self._writes(turns, None, [_NAME, _VALUE, _RESULT]):
            return "values"
        return "text" if self._writes(_with_written_arguments(turns), None, [_NAME, _VALUE, _RESULT]) else None

    def _writes(self, messages: list[Row], tools: Tools | None, texts: list[str]) -> bool:
        """Whether the template accepts turns and schemas, and writes the texts."""
        written = self._apply(messages, tools) if self._apply is not None else None
        return written is not None and all(text in written for text in texts)


def _call_of(call: Any) -> Row:
    """One call of a tool, in the form of OpenAI's API."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"tool_calls holds {describe(call)}, not a call with a function's name: fix that row")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = without_nulls(parse_json(arguments, "arguments"), "arguments") if arguments.strip() else {}
    own = {"id": call["id"]} if "id" in call else {}
    return {**own, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _with_written_arguments(messages: list[Row]) -> list[Row]:
    """The turns with the arguments of calls as JSON text."""

    def written(call: Row) -> Row:
        function = call["function"]
        text = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**turn, "tool_calls": [written(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in messages
    ]
