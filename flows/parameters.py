"""The parameters of flows, as the form in Prefect's UI shows them.

Every setting of `RunConfig` is there, and each may be left out: then the recipe's value stands. The form shows sections
closed, fields empty and settings in the order of `config`; what cannot be right is refused before a run exists, because
the bounds of `config` are in the JSON schema.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model, model_serializer
from pydantic.json_schema import SkipJsonSchema

from flows.server.api import is_loopback
from spin_core.config.base import nameable
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError

TOP_LEVEL = ("recipe", "iterations")
"""Settings that are parameters of their own."""

LeftOut = Annotated[None, WithJsonSchema({"type": "null", "title": "as the recipe has it"})]
"""None, under the name that the form gives it."""

Unseen = Annotated[None, SkipJsonSchema()]
"""None, of which the form does not know."""

Iterations = Annotated[int, Field(ge=1, le=1000, title="number")] | LeftOut
"""How many iterations; None takes the recipe's number."""

OwnName = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9-]{0,62})?$")]
"""A lineage's name, or nothing."""


STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss"}
"""What URLs of stores elsewhere begin with. fsspec knows more, of which many reach a file or a port of this machine."""

ALLOW = "SPIN_ALLOW"
"""The worker's variable of what else may be chosen for runs of deployments: words `setting` or `setting=value`."""


class Partial(BaseModel):
    """Settings of which some are given. Dumped, it is those alone."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), title="change", hide_input_in_errors=True
    )

    @model_serializer
    def given(self) -> dict[str, Any]:
        """The values that were filled in, without sections in which nothing was."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Partial):
                value = value.given() or None
            # A setting that can be None itself is given None on purpose; elsewhere, None is a field left empty.
            if value is not None or (name in self.model_fields_set and NoneType in get_args(field.annotation)):
                found[name] = value
        return found


@cache
def partial(model: type[BaseModel]) -> type[Partial]:
    """The same settings, each of which may be left out."""
    fields: dict[str, Any] = {}
    for position, (name, field) in enumerate(model.model_fields.items()):
        if model is RunConfig and name in TOP_LEVEL:
            continue
        kind: Any = field.annotation
        section = next((one for one in (kind, *get_args(kind)) if is_settings(one)), None)
        if section is not None:
            below: Any = partial(section)
            kind = below | LeftOut
        elif NoneType not in get_args(kind):
            kind = Annotated[kind, "may be left out", *field.metadata] | Unseen
        fields[name] = (
            kind,
            Field(
                default=None,
                title=name.replace("_", " "),
                description=field.description,
                json_schema_extra=section_form(position) if section else field_form(position),
            ),
        )
    return create_model(f"{model.__name__}Overrides", __base__=Partial, __doc__=model.__doc__, **fields)


def is_settings(kind: Any) -> bool:
    """It is a model with settings of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def section_form(position: int) -> Any:
    """How the form shows a section: closed, since its default is None."""
    return {"position": position}


def field_form(position: int) -> Any:
    """How the form shows a setting: empty, and yes or no as a choice, since a switch cannot be left as it is."""

    def change(schema: dict[str, Any]) -> None:
        schema["position"] = position
        del schema["default"]
        for part in (schema, *schema.get("anyOf", ())):
            if part.get("type") == "boolean":
                part["enum"] = [True, False]

    return change


if TYPE_CHECKING:

    class Overrides(Partial):
        """`RunConfig` with every field optional."""
else:
    Overrides = partial(RunConfig)


def given(overrides: Partial) -> dict[str, Any]:
    """The values that were filled in.

    `ConfigError` if a deployment's run would run code that nobody here has chosen, send a key to others, or push a copy
    into a folder of this machine outside the one that is served: whoever fills in a form has no business there, unless
    the worker's environment says so.
    """
    from prefect.runtime import deployment

    found = overrides.given()
    allowed = os.environ.get(ALLOW, "").split()
    for setting, (harmless, instead) in GUARDED.items() if deployment.id else ():
        value = chosen(found, setting)
        if value and not harmless(value) and not {setting, f"{setting}={value}"} & set(allowed):
            raise ConfigError(
                f"{setting}={value} is not for a deployment's run to choose: {instead}, or have {ALLOW} name it in the "
                "worker's environment"
            )
    return found


def chosen(values: Any, setting: str) -> Any:
    """The value that was filled in for a setting; None if none was."""
    for name in setting.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def may_push(url: str) -> bool:
    """Whether a copy lies in the folder that is served, or in a store elsewhere."""
    from fsspec.implementations.local import LocalFileSystem

    protocol, sign, _ = url.partition("://")
    if not sign or protocol in LocalFileSystem.protocol:
        path = Path(LocalFileSystem._strip_protocol(url))
        return path.resolve().is_relative_to(served_folder().resolve())
    # A second driver may stand behind the first, as in s3://name::file:///folder, and lead to a local folder with it.
    return "::" not in url and protocol in STORES


def is_here(url: str) -> bool:
    """Whether this machine alone answers at an address."""
    return is_loopback(urlsplit(url).hostname or "")


def none(_value: Any) -> bool:
    """No value is harmless."""
    return False


ON_RAY = (lambda address: address == "auto", "take auto")
ON_NODES = (none, "train on one machine")
GUARDED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model.trust_remote_code": (none, "leave it off"),
    "generate.vllm.python": (none, "leave it out"),
    "generate.speed.ray.address": ON_RAY,
    "evaluate.speed.ray.address": ON_RAY,
    "sft.train.speed.rendezvous": ON_NODES,
    "train.speed.rendezvous": ON_NODES,
    "evaluate.judge.api_key_env": (lambda name: name == "OPENAI_API_KEY", "take OPENAI_API_KEY"),
    "evaluate.judge.base_url": (is_here, "take a judge on the worker's own machine, or OpenAI's by leaving it out"),
    "push.url": (may_push, "name a folder in the one that is served, or a store such as s3://bucket/folder"),
}
"""Settings by which a run could run other code, send a key elsewhere or write elsewhere: whether a value is harmless,
and what to do instead."""


def served_folder() -> Path:
    """The folder whose lineages are served here."""
    return Path(os.environ.get("SPIN_RUNS", "") or "runs").absolute()


def runs_folder(named: str = "") -> Path:
    """The folder that holds lineages: the one named, or `SPIN_RUNS`, or `runs`.

    `ConfigError` if a deployment's run names one outside the folder that is served: whoever may start runs may not
    have them write anywhere.
    """
    from prefect.runtime import deployment

    served = served_folder()
    try:
        folder = served / nameable(named)
    except ValueError as error:
        raise ConfigError(f"runs: {error}") from error
    if deployment.id and not folder.resolve().is_relative_to(served.resolve()):
        raise ConfigError(f"runs {named!r} lies outside {served}, which is served here: name a folder in it, or none")
    return folder
