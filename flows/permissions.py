"""What a run of a deployment may choose.

A person who may start runs in the UI or by the API is not necessarily allowed to do all that the worker's user can. So
a run of a deployment may not choose other code to run, send a key elsewhere, or write outside the folder that is
served, unless the worker's environment allows it. Runs of the command line are not restricted.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flows.parameters import Partial
from spin_core.config.base import valid_path
from spin_core.config.resolve import REFERENCE
from spin_core.config.trust import is_on_this_machine, value_of
from spin_core.errors import ConfigError

ALLOW = "SPIN_ALLOW"
"""The worker's environment variable with exceptions, separated by spaces: `setting` or `setting=value`."""

_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss"}
"""URL schemes of remote stores. fsspec knows more, but many of those reach a file or a port of this machine."""


class Rule(NamedTuple):
    """When a value is harmless, and what to do if it is not."""

    is_harmless: Callable[[Any], bool]
    alternative: str


def permitted_values(overrides: Partial) -> dict[str, Any]:
    """The values that were filled in, if the current run may choose them.

    Raises:
        ConfigError: This is a run of a deployment, and a value is not harmless nor in `SPIN_ALLOW`. Or a value refers
            to an environment variable, which is replaced only in what the worker's own user writes.
    """
    from prefect.runtime import deployment

    values = overrides.filled_in()
    if reference := REFERENCE.search(json.dumps(values, default=str)):
        raise ConfigError(f"{reference[0]} is not replaced in values from a form: write the value itself")
    allowed = os.environ.get(ALLOW, "").split()
    for setting, rule in GUARDED.items() if deployment.id else ():
        value = value_of(values, setting)
        if value and not rule.is_harmless(value) and not {setting, f"{setting}={value}"} & set(allowed):
            raise ConfigError(
                f"{setting}={value} is not for a deployment's run to choose: {rule.alternative}, or list it in {ALLOW} "
                "in the worker's environment"
            )
    return values


def runs_folder(name: str = "") -> Path:
    """The folder that holds lineages: the one named, or `SPIN_RUNS`, or `runs`.

    Raises:
        ConfigError: A deployment's run names a folder outside the one that is served, or the name cannot be a path.
    """
    from prefect.runtime import deployment

    served = _served_folder()
    try:
        folder = served / valid_path(name)
    except ValueError as error:
        raise ConfigError(f"runs: {error}") from error
    if deployment.id and not folder.resolve().is_relative_to(served.resolve()):
        raise ConfigError(f"runs {name!r} is outside {served}, which is served here: name a folder in it, or none")
    return folder


def _served_folder() -> Path:
    """The folder whose lineages are served here."""
    return Path(os.environ.get("SPIN_RUNS", "") or "runs").absolute()


def _is_harmless_copy(url: str) -> bool:
    """Whether a copy is in the folder that is served, or in a remote store."""
    from fsspec.implementations.local import LocalFileSystem

    protocol, separator, _ = url.partition("://")
    if not separator or protocol in LocalFileSystem.protocol:
        path = Path(LocalFileSystem._strip_protocol(url))
        return path.resolve().is_relative_to(_served_folder().resolve())
    # fsspec chains drivers with `::`: s3://name::file:///folder ends in a local folder, whatever it begins with.
    return "::" not in url and protocol in _STORES


def _never(_value: Any) -> bool:
    return False


_ON_RAY = Rule(lambda address: address == "auto", "use auto")
_ON_NODES = Rule(_never, "train on one machine")

GUARDED: Mapping[str, Rule] = {
    "model.trust_remote_code": Rule(_never, "leave it off"),
    "generate.vllm.python": Rule(_never, "leave it out"),
    "generate.speed.ray.address": _ON_RAY,
    "evaluate.speed.ray.address": _ON_RAY,
    "sft.train.speed.rendezvous": _ON_NODES,
    "train.speed.rendezvous": _ON_NODES,
    "evaluate.judge.api_key_env": Rule(lambda name: name == "OPENAI_API_KEY", "use OPENAI_API_KEY"),
    "evaluate.judge.base_url": Rule(
        is_on_this_machine, "use a judge on the worker's own machine, or OpenAI's by leaving it out"
    ),
    "push.url": Rule(
        _is_harmless_copy, "name a folder in the one that is served, or a store such as s3://bucket/folder"
    ),
}
"""Settings by which a run could run other code, send a key elsewhere, or write elsewhere."""
