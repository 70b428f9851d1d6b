"""Base types of all settings: frozen models, schedules, paths."""

import os
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

M = TypeVar("M", bound=BaseModel)

T = TypeVar("T")

P = TypeVar("P", str, Path)

SCHEDULE = "schedule"

Schedule = Annotated[Union[T, Annotated[tuple[T, ...], Field(min_length=1)]], SCHEDULE]
"""One value, or one value for each iteration; after its end, the last value is used."""

EXECUTION = "execution"

Execution = Annotated[T, EXECUTION]
"""A setting of how, where or at what cost a result is computed. It has no influence on the result, so the identity of
a job leaves it out, and it may change while a lineage grows."""

Fraction = Annotated[float, Field(ge=0, le=1)]

NonNegativeFloat = Annotated[float, Field(ge=0)]


def valid_path(path: P) -> P:
    """Return the path if a file system allows such a path. Otherwise raise an error that pydantic reports.

    Without this check, looking for such a path would raise an error instead of answering that it does not exist.
    """
    try:
        text = os.fsencode(Path(path).expanduser())
    except (RuntimeError, UnicodeEncodeError):
        text = b"\0"
    if b"\0" in text or len(text) > 4095 or any(len(part) > 255 for part in text.split(b"/")):
        reason = "a name in it is too long, names an unknown user, or has invalid characters"
        message = f"{str(path)[:100]!r} cannot be a path ({reason}): correct it"
        raise PydanticCustomError("no_path", "{message}", {"message": message})
    return path


def may_be_hub_name(name: str) -> bool:
    """Whether a location that is not a folder here may be a name on the hub, such as `owner/name`."""
    path = Path(name).expanduser()
    return not (path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1)


Location = Annotated[str, AfterValidator(valid_path)]
"""A path, or the name of something on the hub."""

Folder = Annotated[Path, AfterValidator(valid_path)]
"""A folder's path."""


class Frozen(BaseModel):
    """Base of all configuration and records: immutable, strict about fields, documented by docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


def at(schedule: T | tuple[T, ...], t: int) -> T:
    """The value that a schedule has in iteration `t`."""
    if isinstance(schedule, tuple):
        return schedule[min(t, len(schedule) - 1)]
    return schedule


def at_iteration(config: M, t: int) -> M:
    """The configuration with every schedule at its value in iteration t."""
    values: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            values[name] = at_iteration(value, t)
        elif SCHEDULE in field.metadata:
            values[name] = at(value, t)
    return config.model_copy(update=values)
