"""What Prefect's list of runs tells of one: tags by which it is found, and at its end where its table stands."""

import contextlib
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.states import Completed

from flows.server.local import DEFAULT_PORT
from tasks.publish import artifact_key

T = TypeVar("T")


def label(**tags: str) -> None:
    """Give the run tags such as `recipe:demo`, beside those that it has. No run ends for the sake of its tags."""
    if not flow_run.id:
        return
    run, ours = UUID(flow_run.id), [f"{name}:{value}" for name, value in tags.items()]
    with (
        contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError),
        get_client(sync_client=True) as client,
    ):
        have = client.read_flow_run(run).tags
        if not set(ours) <= set(have):
            client.update_flow_run(run, tags=list(dict.fromkeys([*have, *ours])))


def ended(line: str, result: T) -> T:
    """What a flow returns so that its run is completed with this line; its caller gets the result."""
    get_run_logger().info("%s", line)
    return cast(T, Completed(message=line, data=result))


def place_of(table: str, name: str) -> str:
    """`leaderboard: http://127.0.0.1:4200/v2/artifacts/key/leaderboard-mine`."""
    return f"{table}: {address_of(table, name)}"


def address_of(table: str, name: str) -> str:
    """Where the UI shows a `leaderboard` or a `comparison`. The menu leads nowhere near.

    Under a temporary server it is where `spin up` shows it later.
    """
    ui = PREFECT_UI_URL.value() or f"http://127.0.0.1:{DEFAULT_PORT}"
    return f"{ui.rstrip('/')}/v2/artifacts/key/{artifact_key(f'{table}-{name}')}"
