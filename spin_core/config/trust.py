"""Settings by which a configuration that somebody else wrote can run code, send a key or reach another machine."""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Risk(NamedTuple):
    """What a setting can do, and for which values it cannot."""

    effect: str
    is_harmless: Callable[[Any], bool]


def risks(config: Mapping[str, Any]) -> list[str]:
    """What a configuration, as plain values, can do beyond computing: `push.url = s3://… (writes there)` for each.

    Empty values do nothing.
    """
    found = []
    for setting, risk in RISKS.items():
        value = value_of(config, setting)
        if value and not risk.is_harmless(value):
            shown = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            found.append(f"{setting}={shown[:200]} ({risk.effect})")
    return found


def value_of(values: Any, setting: str) -> Any:
    """The value of a dotted setting in nested plain values; None if it is not there."""
    for name in setting.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_on_this_machine(url: str) -> bool:
    """Whether a URL's host is this machine."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def _never(_value: Any) -> bool:
    return False


_ON_RAY = Risk("runs the phases on that cluster", lambda address: address == "auto")
_ON_NODES = Risk("connects to that machine", _never)

RISKS: Mapping[str, Risk] = {
    "model.trust_remote_code": Risk("runs Python files that come with the model", _never),
    "generate.vllm.python": Risk("runs that program", _never),
    "generate.speed.ray.address": _ON_RAY,
    "evaluate.speed.ray.address": _ON_RAY,
    "sft.train.speed.rendezvous": _ON_NODES,
    "train.speed.rendezvous": _ON_NODES,
    "evaluate.judge.api_key_env": Risk("sends that variable to the judge", lambda name: name == "OPENAI_API_KEY"),
    "evaluate.judge.base_url": Risk("sends answers and a key there", is_on_this_machine),
    "metrics.sinks": Risk("sends metrics with your account", lambda sinks: set(sinks) <= {"tensorboard"}),
    "push.url": Risk("writes the lineage there", _never),
}
"""Settings by their dotted names."""
