"""Pydantic's errors about settings in plain words: `train.beta cannot be 0: give a number greater than 0`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_KINDS: Mapping[str, str] = {
    "tuple": "a list, such as [a, b]",
    "list": "a list, such as [a, b]",
    "dict": "settings in braces, such as {name: value}",
    "model": "settings in braces, such as {name: value}",
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "finite": "a finite number",
}
"""What a value must be, by the first word of the error's type (`float_parsing`, `tuple_type`)."""

_LIMITS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda limits: f"a number greater than {limits['gt']:g}",
    "greater_than_equal": lambda limits: f"{limits['ge']:g} or more",
    "less_than": lambda limits: f"a number less than {limits['lt']:g}",
    "less_than_equal": lambda limits: f"{limits['le']:g} or less",
    "literal_error": lambda limits: f"one of {limits['expected'].replace(' or ', ', ')}".replace("'", ""),
    "too_short": lambda limits: _at_least(limits["min_length"]),
    "string_pattern_mismatch": lambda limits: f"a text that matches {limits['pattern']}",
}
"""What a value must be, by the error's type."""


def message_of(field: str, error: Mapping[str, Any]) -> str:
    """One line: the setting, the value that it cannot have, and what to give instead."""
    if error["type"] == "missing":
        return f"{field} is missing: give it a value"
    return f"{field} cannot be {show_value(error.get('input'))}: {_instruction(error)}"


def without_unused_forms(errors: Sequence[Any]) -> list[Any]:
    """Errors without those about the form of a schedule (one value, or a list) that the user did not choose."""
    return [error for error in errors if not _is_of_unused_form(error)] if len(errors) > 1 else list(errors)


def show_value(value: Any) -> str:
    """A value as it is written in YAML: `[0.1, 'x']`, `null`, `true`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show_value(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _is_of_unused_form(error: Mapping[str, Any]) -> bool:
    kind, is_list = error["type"], isinstance(error["input"], list | tuple)
    # A list whose items are all wrong is also reported as too short.
    return kind == "tuple_type" or (
        is_list and (kind.endswith("_type") or (kind == "too_short" and bool(error["input"])))
    )


def _instruction(error: Mapping[str, Any]) -> str:
    kind: str = error["type"]
    if kind in _LIMITS:
        return f"give {_LIMITS[kind](error['ctx'])}"
    if must_be := _KINDS.get(kind.split("_", maxsplit=1)[0]):
        return f"give {must_be}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}"


def _at_least(number: int) -> str:
    return "at least one value" if number == 1 else f"at least {number} values"
