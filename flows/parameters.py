"""The parameters of flows, as the form in Prefect's UI shows them."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from spin_core.config import RunConfig

TOP_LEVEL = ("recipe", "iterations")
"""Settings that are parameters of their own."""

Iterations = Annotated[int, Field(ge=1, le=1000)]


@cache
def partial(model: type[BaseModel]) -> type[BaseModel]:
    """The same settings, each of which may be left out: then the recipe's value stands."""
    fields: dict[str, Any] = {}
    for position, (name, field) in enumerate(model.model_fields.items()):
        kind: Any = field.annotation
        about: dict[str, Any] = {
            "title": name.replace("_", " "),
            "description": field.description,
            "json_schema_extra": {"position": position},
        }
        if model is RunConfig and name in TOP_LEVEL:
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            below = partial(kind)
            fields[name] = (below, Field(default_factory=below, **about))
        else:
            fields[name] = (Annotated[kind, "may be left out", *field.metadata] | None, Field(default=None, **about))
    return create_model(
        f"{model.__name__}Overrides",
        __config__=ConfigDict(extra="forbid", frozen=True, protected_namespaces=()),
        __doc__=model.__doc__,
        **fields,
    )


if TYPE_CHECKING:

    class Overrides(BaseModel):
        """`RunConfig` with every field optional."""
else:
    Overrides = partial(RunConfig)


def given(overrides: BaseModel) -> dict[str, Any]:
    """The values that were filled in."""
    return prune(overrides.model_dump(mode="json", exclude_none=True))


def prune(values: dict[str, Any]) -> dict[str, Any]:
    """Without empty levels."""
    kept = {name: prune(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in kept.items() if value != {}}


def runs_folder(named: str = "") -> Path:
    """The folder that holds lineages: the one named, or `SPIN_RUNS`, or `runs`."""
    return Path(named or os.environ.get("SPIN_RUNS", "") or "runs").absolute()
