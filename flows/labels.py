"""Labels of a run in Prefect's list: tags to find it by, and at its end a line with the address of its table."""

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
from spin_core.reports.links import artifact_path, report_path

T = TypeVar("T")


def add_tags(**tags: str) -> None:
    """Add tags such as `recipe:demo` to the current run. Errors are ignored, and the run continues without tags."""
    if not flow_run.id:
        return
    run, new = UUID(flow_run.id), [f"{name}:{value}" for name, value in tags.items()]
    with (
        contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError),
        get_client(sync_client=True) as client,
    ):
        existing = client.read_flow_run(run).tags
        if not set(new) <= set(existing):
            client.update_flow_run(run, tags=list(dict.fromkeys([*existing, *new])))


def completed(message: str, result: T) -> T:
    """The value that a flow returns to complete its run with a message. The flow's caller gets `result`."""
    get_run_logger().info("%s", message)
    return cast(T, Completed(message=message, data=result))


def artifact_line(table: str, name: str) -> str:
    """`leaderboard: http://127.0.0.1:4200/v2/artifacts/key/leaderboard-mine`, and the report where it is served."""
    report = report_path(name)
    return f"{table}: {artifact_url(table, name)}" + (f" report: {_ui_url()}{report}" if report else "")


def artifact_url(table: str, name: str) -> str:
    """The page of the UI with a `leaderboard` or a `comparison`, which no menu of the UI leads to.

    Under a temporary server, it is the address at which `spin up` shows it later.
    """
    return f"{_ui_url()}{artifact_path(f'{table}-{name}')}"


def _ui_url() -> str:
    """The address of the UI, without a slash at its end."""
    return (PREFECT_UI_URL.value() or f"http://127.0.0.1:{DEFAULT_PORT}").rstrip("/")
