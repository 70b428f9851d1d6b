"""Proxies in the environment: connections within this machine never go through one.

A proxy cannot reach this machine's loopback addresses, on which the server of a run, its ranks and a user's own judge
listen. Libraries read the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY each in their own way, so the
exceptions are added to the environment, where all of them and all child processes find them.
"""

import importlib
import os
import urllib.request

from spin_core.errors import ConfigError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def bypass_for_loopback() -> None:
    """Add this machine's names to NO_PROXY, if the environment has a proxy."""
    proxies = urllib.request.getproxies_environment()
    if not proxies.keys() - {"no"}:
        return
    names = [name.strip() for name in proxies.get("no", "").split(",") if name.strip()]
    if "*" not in names:
        names += [name for name in _LOOPBACK if name not in names]
    # Some libraries read the one, some the other, and most prefer the lower case.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(names)


def check() -> None:
    """Raise `ConfigError` if the environment has a proxy that the client of Prefect's server cannot be made with.

    It is made with all proxies, even if it connects to none of them.
    """
    proxies = urllib.request.getproxies_environment()
    if not proxies.keys() - {"no"}:
        return
    httpx = importlib.import_module("httpx")
    try:
        httpx.Client().close()
    except ImportError as error:
        raise ConfigError(
            "the environment has a SOCKS proxy, for which the package socksio is missing: run pip install socksio, or "
            "unset ALL_PROXY, HTTP_PROXY and HTTPS_PROXY"
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"the environment has a proxy that cannot be used ({error}): correct or unset ALL_PROXY, HTTP_PROXY and "
            "HTTPS_PROXY"
        ) from error
