"""Values of a row: text, JSON, and how a wrong one appears in a message."""

import json
from collections.abc import Iterator
from typing import Any

from spin_core.errors import DataError

Row = dict[str, Any]

_DEEPEST = 50
"""How deep lists and dictionaries in a turn may be nested."""


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


def strings_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def _check_characters(text: str, column: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{column} holds half a character (a lone surrogate): fix that row") from error
