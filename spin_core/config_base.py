"""What all settings are made of."""

from typing import Annotated, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

SCHEDULE = "schedule"
Schedule = Annotated[Union[T, Annotated[tuple[T, ...], Field(min_length=1)]], SCHEDULE]
"""One value, or one value an iteration; past its end, the last value holds."""

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


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
