"""Named, complete configurations, and how a user changes them.

A value comes from, in rising order: the recipe, a YAML or TOML file, `--set a.b=c`, the form in the UI.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import ValidationError

from spin_core.config.recipes import RECIPES
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError

RecipeName = Literal["demo", "tinystories", "smollm2-135m", "zephyr-7b", "zephyr-7b-paper"]


def resolve(
    recipe: str,
    *,
    file: Path | None = None,
    sets: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    **top: Any,
) -> RunConfig:
    """The configuration of a run. `top` are values of the top level; None leaves the recipe's.

    Raises `ConfigError` with one line for each value that is wrong.
    """
    if recipe not in RECIPES:
        raise ConfigError(
            f"there is no recipe {recipe!r}{suggestion(recipe, RECIPES)}: choose one of {', '.join(RECIPES)}"
        )
    values: dict[str, Any] = {**RECIPES[recipe], "recipe": recipe}
    for change in (*changes(file, sets), overrides or {}):
        values = merge(values, change)
    values = merge(values, {key: value for key, value in top.items() if value is not None})
    return validate(values)


def validate(values: Mapping[str, Any]) -> RunConfig:
    """A configuration from plain values; `ConfigError` names each field that is wrong, and the cure."""
    try:
        return RunConfig.model_validate(expand(values))
    except ValidationError as error:
        raise ConfigError("; ".join(dict.fromkeys(explain(item) for item in relevant(error.errors())))) from error


def relevant(found: Sequence[Any]) -> list[Any]:
    """Pydantic's errors without those about the form of a schedule that the user did not choose."""
    return [
        item
        for item in found
        if not (item["type"] == "tuple_type" or (item["type"].endswith("_type") and isinstance(item["input"], tuple)))
        or len(found) == 1
    ]


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, level by level. An empty level takes back all that `base` has in it."""
    merged = dict(base)
    for key, value in change.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and value:
            value = merge(below, value)
        merged[key] = value
    return merged


def changes(file: Path | None, sets: Iterable[str]) -> list[dict[str, Any]]:
    """What a file and each `--set` say, to be laid over a configuration one after the other."""
    return [*([read_file(file)] if file is not None else ()), *(read_assignment(assignment) for assignment in sets)]


def read_file(path: Path) -> dict[str, Any]:
    """Settings from a YAML or TOML file."""
    try:
        text = path.read_text("utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a YAML or TOML file") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is neither YAML nor TOML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings: write them as in train:\\n  beta: 0.1")
    return values


def read_assignment(text: str) -> dict[str, Any]:
    """`train.beta=0.1` as nested settings; the value is read as YAML."""
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError(f"--set {text!r} has no value: write it as --set train.beta=0.1")
    try:
        settings: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r} has a value that cannot be read: {' '.join(str(error).split())}") from error
    for key in reversed(name.strip().split(".")):
        settings = {key: settings}
    return dict(settings)


def expand(value: Any) -> Any:
    """Replace `${SPIN_NAME:-default}` in texts by the environment's value.

    No other variable: what stands in a configuration stands in records, too.
    """
    if isinstance(value, Mapping):
        return {key: expand(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(expand(item) for item in value)
    if isinstance(value, str):
        return re.sub(r"\$\{(SPIN_\w+):-([^}]*)\}", lambda match: os.environ.get(match[1]) or match[2], value)
    return value


def explain(error: Any) -> str:
    """One line for one of pydantic's errors: the field, what is wrong, and the cure."""
    path = [part for part in error["loc"] if isinstance(part, str) and not part.startswith(("tuple[", "function-"))]
    names = [part for part in path if part not in ("float", "int", "bool", "constrained-float", "constrained-int")]
    field = ".".join(names)
    if error["type"] == "extra_forbidden":
        return f"{field} is no setting{suggestion(names[-1], known_fields(names[:-1]))}: see `spin recipes --settings`"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "no_path":
        return f"{field} {error['msg']}"
    given = error.get("input")
    return f"{field} cannot be {given!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def known_fields(path: list[str]) -> list[str]:
    """The fields of the configuration below a dotted path; none if the path leads nowhere."""
    model: Any = RunConfig
    for name in path:
        field = getattr(model, "model_fields", {}).get(name)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean beta?` if something known is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
