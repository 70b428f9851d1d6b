"""The lineage's copy in a store. If the store is not available, the run continues, and the next push uploads it."""

import time
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from spin_core.errors import first_line
from spin_core.lineage.lineage import Lineage
from spin_core.preflight.findings import size
from spin_core.remote import push as pushes
from spin_core.remote.push import Transfer
from tasks import display
from tasks.phase_task import RETRIES, RETRY_DELAY_SECONDS, ProgressArtifact, may_pass


def push(lineage: Lineage) -> None:
    """Upload what is missing in the copy, if the configuration has one. A failure is shown, and the run continues."""
    if not lineage.config.push.url:
        return
    state: State[Any] = upload(lineage, return_state=True)
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        reason = first_line(error) if isinstance(error, BaseException) else state.message
        note = f"not pushed: {reason}; nothing is lost here, and the next push uploads the rest"
        display.current.noted(note)
        get_run_logger().warning("%s", note)


@task(
    name="push",
    task_run_name="push {lineage.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=may_pass,
)
def upload(lineage: Lineage) -> Transfer | State[Transfer]:
    """Push once, with the progress of a phase."""
    shown, bar, began = display.current, ProgressArtifact("push"), 0.0

    def show_progress(sent: int, total: int) -> None:
        nonlocal began
        if not began:
            began = time.monotonic()
            shown.started("push")
        message = {"done": round(sent / 1e6), "total": max(1, round(total / 1e6)), "unit": "megabyte"}
        shown.progress(message)
        bar.update(message)

    try:
        pushed = pushes.push(lineage, lineage.config.push, on_bytes=show_progress)
    except BaseException:
        if began:
            shown.failed("push")
        raise
    bar.finish()
    if not began:
        shown.reused("push")
        return Completed(name="Reused", message=lineage.config.push.url, data=pushed)
    shown.finished("push", time.monotonic() - began)
    get_run_logger().info("%d files, %s, pushed to %s", pushed.moved, size(pushed.bytes), lineage.config.push.url)
    return pushed
