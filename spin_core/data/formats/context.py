"""What a row says of its conversation outside the turns: a system prompt, earlier turns, tools."""

from collections.abc import Callable
from typing import Any, TypeVar

from spin_core.data.chat import Message
from spin_core.data.formats.columns import HISTORY, LABEL, SYSTEMS, TOOLS
from spin_core.data.formats.tools import Tools, tools_of
from spin_core.data.formats.turns import FLAGS, Dropped, is_role, may_learn, turns_of
from spin_core.data.formats.values import Row, describe, parse_json, text_of
from spin_core.errors import DataError

T = TypeVar("T")

_NO_INPUT = ("", "<noinput>")
"""An input that is none. Data in the manner of self-instruct write the second."""


def with_context(row: Row, turns: list[Message], setting: str = "prompts") -> list[Message]:
    """The turns after the system prompt and the earlier turns of the row's columns.

    Raises:
        DataError: a column holds something else.
        Dropped: the row has different system prompts.
    """
    system = turns[:1] if turns and turns[0]["role"] == "system" else []
    prompts = [_read(text_of, row, column, setting) for column in SYSTEMS]
    prompts = [text for text in prompts if text.strip()]
    history = _read(_history_of, row, HISTORY, setting)
    different = {*prompts, *(turn["content"] for turn in system)}
    if len(different) > 1:
        raise Dropped("several-system-prompts")
    first = system or [{"role": "system", "content": text} for text in prompts[:1]]
    return [*first, *history, *turns[len(system) :]]


def with_input(prompt: list[Message], prompt_column: str, row: Row, column: str | None, setting: str) -> list[Message]:
    """A prompt's turns with the text of a row's column of input below the last one.

    A column `prompt` may be whole, with its input in it. Then nothing is added.
    """
    input = _read(text_of, row, column, setting) if column else ""
    if input.strip().lower() in _NO_INPUT or not prompt:
        return prompt
    above = prompt[-1]["content"]
    if prompt_column == "prompt" and input.strip() in above:
        return prompt
    return [*prompt[:-1], {**prompt[-1], "content": f"{above}\n\n{input}" if above.strip() else input}]


def row_tools(row: Row, setting: str = "prompts") -> Tools | None:
    """The schemas of the tools in a row. Raises `DataError` if its column holds something else."""
    found = (_read(lambda row, column: tools_of(row.get(column), column), row, name, setting) for name in TOOLS)
    return next((tools for tools in found if tools), None)


def unlearned_by(row: Row) -> str | None:
    """The column that says that a row is not to be learned; None if there is none."""
    if row.get(LABEL) is False:
        return LABEL
    return next((column for column in FLAGS if _says_unlearned(column, row.get(column))), None)


def _says_unlearned(column: str, value: Any) -> bool:
    """Whether a flag's value forbids to learn a row. A column by such a name may mean something else."""
    try:
        return not may_learn(column, value)
    except DataError:
        return False


def _history_of(row: Row, column: str) -> list[Message]:
    """Earlier turns: pairs of a question and its answer, pairs of a role and a text, or turns, perhaps as JSON."""
    value = row.get(column)
    if isinstance(value, str):
        value = parse_json(value, column) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"{column} is {describe(value)}, not a list of pairs or turns: fix that row")
    pairs = [item for item in value if _is_pair(item)]
    if all(is_role(role) for role, _ in pairs):
        value = [{"role": item[0], "content": item[1]} if _is_pair(item) else item for item in value]
    turns: list[Message] = []
    for item in value:
        if _is_pair(item):
            for role, text in zip(("user", "assistant"), item, strict=True):
                turns.append({"role": role, "content": text_of({column: text}, column)})
        elif item is not None:
            turns += turns_of({column: [item]}, column, "user")
    return turns


def _is_pair(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2


def _read(parse: Callable[[Row, str], T], row: Row, column: str, setting: str) -> T:
    """What a column says.

    Raises `DataError` with another fix than `parse` names: a column by such a name may mean something else.
    """
    try:
        return parse(row, column)
    except DataError as error:
        raise DataError(f'{error}, or leave the column out in {setting}.columns, {{"{column}": "unused"}}') from error
