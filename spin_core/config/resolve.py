"""Named, complete configurations, and how a user changes them.

A value comes from, in rising order: the recipe, a YAML or TOML file, `--set a.b=c`, the form in the UI.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import ValidationError

from spin_core.config.recipes import RECIPES
from spin_core.config.run import RunConfig
from spin_core.config.yaml_text import read_yaml
from spin_core.errors import ConfigError

VARIABLES = frozenset({"SPIN_DATA"})
"""The environment variables that every recipe, file and `--set` may use. A file may declare more as its `variables`."""

REFERENCE = re.compile(r"\$\{(SPIN_\w+):-([^}]*)\}")
"""A reference to an environment variable, with its default."""

_MAX_CHARACTERS = 10_000_000
"""How long a file of settings may be."""

_MAX_NAME_PARTS = 50
"""The most parts of a setting's name, as in `train.beta`. No setting has so many: a longer name is a mistake."""

_NAME = re.compile(r"SPIN_[A-Z0-9_]+")

_MAY_BE_SECRET = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|KEY|AUTH|CREDENTIAL|WEBHOOK|SMTP")

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

RecipeName = Literal["demo", "tinystories", "smollm2-135m", "zephyr-7b", "zephyr-7b-paper", "zephyr-7b-scripts"]


def resolve(
    recipe: str,
    *,
    file: Path | None = None,
    sets: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    **top: Any,
) -> RunConfig:
    """Return the configuration of a run.

    Args:
        recipe: The name of the recipe to start from.
        file: A YAML or TOML file with settings.
        sets: Assignments like `train.beta=0.1`.
        overrides: Nested settings, as the form in the UI gives them.
        top: Settings of the top level; None keeps the value that the other sources give.

    Raises:
        ConfigError: One line that names each invalid value.
    """
    if recipe not in RECIPES:
        raise ConfigError(
            f"there is no recipe {recipe!r}{suggestion(recipe, RECIPES)}: choose one of {', '.join(RECIPES)}"
        )
    values: dict[str, Any] = {**expand_environment(RECIPES[recipe], VARIABLES), "recipe": recipe}
    for change in (*read_changes(file, sets), overrides or {}):
        values = merge(values, change)
    values = merge(values, {key: value for key, value in top.items() if value is not None})
    return build_config(values)


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """Return a configuration from plain values.

    Raises:
        ConfigError: One line that names each invalid field and how to fix it.
    """
    if too_large := _first_too_large(values):
        raise ConfigError(f"{too_large} must be a number below 2^63: lower it")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        messages = [_error_message(item) for item in _without_unused_forms(error.errors())]
        raise ConfigError("; ".join(dict.fromkeys(messages))) from error


def _first_too_large(values: Any, name: str = "") -> str:
    """The first setting whose value is a whole number of more than 64 bits, which no library takes; else empty."""
    if isinstance(values, Mapping):
        below = ((f"{name}.{key}" if name else str(key), value) for key, value in values.items())
    elif isinstance(values, (list, tuple)):
        below = ((name, value) for value in values)
    else:
        return name if isinstance(values, int) and not -(2**63) <= values < 2**63 else ""
    return next(filter(None, (_first_too_large(value, key) for key, value in below)), "")


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `change`, level by level. An empty level of `change` empties that level."""
    merged = dict(base)
    for key, value in change.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and value:
            value = merge(below, value)
        merged[key] = value
    return merged


def read_changes(file: Path | None, sets: Iterable[str]) -> list[dict[str, Any]]:
    """Return the settings of the file and of each `--set`, in the order in which they are merged.

    Environment variables are replaced here, since this is what the person who starts the command wrote. Settings of a
    form or of a lineage are somebody else's, and are taken as they are.
    """
    settings, names = [], VARIABLES
    if file is not None:
        values = read_file(file)
        names |= _declared(values.pop("variables", []), file)
        settings.append(values)
    settings += [read_assignment(assignment) for assignment in sets]
    return [expand_environment(values, names) for values in settings]


def _may_be_used(name: str) -> bool:
    """Whether a file may declare this variable."""
    return bool(_NAME.fullmatch(name)) and not _MAY_BE_SECRET.search(name)


def _declared(names: Any, file: Path) -> set[str]:
    """The environment variables that a file lists as its `variables`."""
    if not isinstance(names, list) or not all(isinstance(name, str) and _may_be_used(name) for name in names):
        raise ConfigError(
            f"{file}: variables must be a list of names that begin with SPIN_ and name no password, key or token, as "
            "[SPIN_TEAM_DATA]: records hold what they are replaced by"
        )
    return set(names)


def read_file(path: Path) -> dict[str, Any]:
    """Read settings from a YAML or TOML file."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
        if len(text) > _MAX_CHARACTERS:
            raise ConfigError(f"{path} has more than {_MAX_CHARACTERS:,} characters: give a file of settings")
        values = tomllib.loads(text) if path.suffix == ".toml" else read_yaml(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a YAML or TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 ({error.reason}): save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {' '.join(str(error).split())}: fix that line") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML, {_yaml_problem(error)}: fix that line") from error
    except ValueError as error:  # TOML's reader leaves it to Python to refuse a number of thousands of digits
        raise ConfigError(f"{path} has a number of too many digits: shorten it") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply: settings have four levels") from error
    if not isinstance(values, dict):
        raise ConfigError(f'{path} has no settings: write them as "train: {{beta: 0.1}}"')
    return values


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Where and why a text is not YAML: `line 2, column 6: could not find expected ':'`."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or 'invalid syntax'}"


def read_assignment(text: str) -> dict[str, Any]:
    """Return `train.beta=0.1` as nested settings; the value is read as YAML."""
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError(f"--set {text!r} has no value: write it as --set train.beta=0.1")
    try:
        settings: Any = read_yaml(value)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        shown = text if len(text) <= 120 else f"{text[:120]}…"
        raise ConfigError(f"--set {shown!r} has a value that is not valid YAML ({reason}): fix or quote it") from error
    names = name.strip().split(".")
    if not all(names) or len(names) > _MAX_NAME_PARTS:
        raise ConfigError(f"--set {name.strip()[:80]!r} is not the name of a setting: see `spin recipes --settings`")
    for key in reversed(names):
        settings = {key: settings}
    return dict(settings)


def expand_environment(value: Any, names: Set[str]) -> Any:
    """Replace `${SPIN_NAME:-default}` in texts by the environment variable's value, or else by the default.

    Args:
        value: Settings, or one value of them.
        names: The variables that may be used. Others may be secret, and a configuration is stored in records.

    Raises:
        ConfigError: Another variable whose name begins with `SPIN_` is used.
    """
    if isinstance(value, Mapping):
        return {key: expand_environment(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(expand_environment(item, names) for item in value)
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        if match[1] not in names:
            raise ConfigError(
                f"{match[0]} is not replaced: list {match[1]} in the file's `variables`, or write the value itself"
            )
        return os.environ.get(match[1]) or match[2]

    return REFERENCE.sub(replaced, value)


def _error_message(error: Any) -> str:
    """One line for one of pydantic's errors: the field, what is wrong, and how to fix it."""
    path = [part for part in error["loc"] if isinstance(part, str) and not part.startswith(("tuple[", "function-"))]
    names = [part for part in path if part not in ("float", "int", "bool", "constrained-float", "constrained-int")]
    field = ".".join(names)
    if error["type"] == "extra_forbidden":
        hint = suggestion(names[-1], _known_fields(names[:-1]), prefix="".join(f"{name}." for name in names[:-1]))
        return f"{field} is not a setting{hint}: see `spin recipes --settings`"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "no_path":
        return f"{field} {error['msg']}"
    return _message_of(field, error)


def _message_of(field: str, error: Mapping[str, Any]) -> str:
    """One line: the setting, the value that it cannot have, and what to give instead."""
    if error["type"] == "missing":
        return f"{field} is missing: give it a value"
    return f"{field} cannot be {_show_value(error.get('input'))}: {_instruction(error)}"


def _without_unused_forms(errors: Sequence[Any]) -> list[Any]:
    """Errors without those about the form of a schedule (one value, or a list) that the user did not choose."""
    return [error for error in errors if not _is_of_unused_form(error)] if len(errors) > 1 else list(errors)


def _show_value(value: Any) -> str:
    """A value as it is written in YAML: `[0.1, 'x']`, `null`, `true`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_show_value(item)}" for key, item in value.items()) + "}"
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


def _known_fields(path: list[str]) -> list[str]:
    """The fields of the configuration below a path; empty if there is no such path."""
    model: Any = RunConfig
    for name in path:
        field = getattr(model, "model_fields", {}).get(name)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The hint ` (did you mean train.beta?)` of an error message; empty if no known name is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""
