"""Waiting for Prefect's server while it is away: `spin up` starts it anew if it ends, and runs are to outlive that."""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

T = TypeVar("T")

PATIENCE_SECONDS = 300.0
EVERY_SECONDS = 3.0


def patiently(ask: Callable[[], T]) -> T:
    """What the server answers, as soon as it does; the error of the last attempt when patience is at its end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(EVERY_SECONDS)
