"""Repeat requests while Prefect's server is not available: `spin up` restarts it if it ends, and runs survive that."""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

_T = TypeVar("_T")

_TIMEOUT_SECONDS = 300.0
_RETRY_SECONDS = 3.0


def with_retries(request: Callable[[], _T]) -> _T:
    """Repeat a request until the server answers, and return the answer. After the timeout, raise the last error."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        try:
            return request()
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
