"""What all tasks have in common: check whether the phase is done, run it in its own process, and show its progress.

The store knows which results exist, so Prefect must not keep a second cache: NO_CACHE, and a phase whose result exists
completes as "Reused".
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from spin_core.errors import Stopped, TryAgain, count
from spin_core.preflight.findings import duration
from spin_core.runtime import launch
from spin_core.store.jobs import Job
from spin_core.store.records import Artifact
from tasks import display, time_left
from tasks.run_logs import shorten_errors
from tasks.time_left import PhaseClock

shorten_errors()

P = ParamSpec("P")

R = TypeVar("R", bound=Artifact)

PROGRESS_EVERY_SECONDS = 5.0

LOG_EVERY_SECONDS = 180.0
"""How often a phase's progress is logged."""

RETRIES = 2

RETRY_DELAY_SECONDS = 10


def phase_task(kind: type[R], run_name: str) -> Callable[[Callable[P, Job]], Callable[P, R]]:
    """Turn a function that writes a job into one that runs it as a Prefect task and returns its record.

    `run_name` is the name of its runs in the UI, with the function's parameters in braces.
    """

    def decorate(write_job: Callable[P, Job]) -> Callable[P, R]:
        name = write_job.__name__.replace("_", "-")

        def body(*args: P.args, **kwargs: P.kwargs) -> "R | State[R]":
            job = write_job(*args, **kwargs)
            done = launch.finished_record(job, kind)
            if done is not None:
                display.current.reused(job.title)
                time_left.finished(job.output)
                return Completed(name="Reused", message=str(job.output), data=done)
            return run(job, kind)

        functools.update_wrapper(body, write_job)
        prefect_task = task(
            name=name,
            task_run_name=run_name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=RETRIES,
            retry_delay_seconds=RETRY_DELAY_SECONDS,
            retry_condition_fn=may_pass,
        )(body)

        @functools.wraps(write_job)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            state: State[Any] = cast(Any, prefect_task)(*args, return_state=True, **kwargs)
            result = state.result()
            assert isinstance(result, kind), f"{name} gave {result!r}"
            return result

        return call

    return decorate


def may_pass(_task: Any, _run: TaskRun, state: "State[Any]") -> bool:
    """Whether a retry may help: only for temporary faults, not for a user's mistake or a bug."""
    return isinstance(state.result(raise_on_failure=False), TryAgain)


def run(job: Job, kind: type[R]) -> R:
    """Run the phase. Show its progress in the terminal and in a progress artifact, and copy its log to the run's."""
    shown, logger = display.current, get_run_logger()
    bar, clock, lines = ProgressArtifact(job.title), PhaseClock(job.output), LogLines(job.title)
    shown.started(job.title)
    began = time.monotonic()

    def on_progress(message: Mapping[str, Any]) -> None:
        message = clock.with_time_left(message)
        shown.progress(message)
        bar.update(message)
        lines.update(message)

    def on_log(line: str) -> None:
        shown.log(line)
        logger.log(logging.INFO, line)

    try:
        record = launch.run_phase(job, kind, on_progress, on_log)
    except (KeyboardInterrupt, TerminationSignal, Stopped):
        shown.stopped(job.title)
        raise
    except BaseException:
        shown.failed(job.title)
        raise
    bar.finish()
    seconds = time.monotonic() - began
    shown.finished(job.title, seconds)
    time_left.finished(job.output, seconds)
    lines.finish(seconds)
    return record


class LogLines:
    """A phase's progress in the log of its run: a line every few minutes, and one at its end with its figures."""

    def __init__(self, title: str) -> None:
        self.title, self.logged = title, time.monotonic()
        self.first: Mapping[str, Any] = {}
        self.last: Mapping[str, Any] = {}

    def update(self, message: Mapping[str, Any]) -> None:
        """Log how far the phase is, unless that was logged a short time ago."""
        self.first, self.last = self.first or message, message
        if time.monotonic() - self.logged >= LOG_EVERY_SECONDS:
            self.logged = time.monotonic()
            line = f"{self.title}: {_progress_text(message)}"
            get_run_logger().info("%s", line)
            display.current.running(line)

    def finish(self, seconds: float) -> None:
        """Log what the phase did, as in `iter 01 · train: 96 steps in 41 s, loss 0.6931 → 0.5210`."""
        did = f"{display.amount(self.last)} in " if self.last else ""
        figures = display.change(self.first, self.last).replace("  ", ", ")
        line = f"{self.title}: {did}{duration(seconds)}" + (f", {figures}" if figures else "")
        get_run_logger().info("%s", line)


class ProgressArtifact:
    """A phase's progress in the UI while it runs, updated every few seconds. A phase that ends sooner gets none."""

    def __init__(self, title: str) -> None:
        self.title, self.updated = title, time.monotonic()
        self.last: Mapping[str, Any] = {}
        self.id: UUID | None = None

    def update(self, message: Mapping[str, Any]) -> None:
        """Show `done` of `total`."""
        now = time.monotonic()
        if not message.get("total"):
            return
        self.last = message
        if now - self.updated >= PROGRESS_EVERY_SECONDS:
            self.updated = now
            self._show(round(100.0 * message["done"] / message["total"], 1))

    def finish(self) -> None:
        """Remove it, and those of earlier tries, so that a run's list of artifacts has the pages that last."""
        if not flow_run.id:
            return
        cards = {"flow_run_id": {"any_": [flow_run.id]}, "type": {"any_": ["progress"]}}
        with (
            contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError, ObjectNotFound),
            get_client(sync_client=True) as client,
        ):
            for card in client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(cards)):
                if (card.description or "").startswith(f"{self.title}: "):
                    client.delete_artifact(card.id)

    def _show(self, percent: float) -> None:
        """Update the artifact if the server is available. A failure of this does not end the phase."""
        text = f"{self.title}: {_progress_text(self.last)}"
        with contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError):
            if self.id is None:
                artifact_id = create_progress_artifact(progress=percent, description=text)
                assert isinstance(artifact_id, UUID), "called from a sync task"
                self.id = artifact_id
            else:
                update_progress_artifact(self.id, progress=percent, description=text)


def _progress_text(message: Mapping[str, Any]) -> str:
    """`1,200 of 6,000 steps  loss 0.5536  0:12:03 left  run: about 40 min left`."""
    amount = f"{message['done']:,} of {count(message['total'], message['unit'])}"
    parts = (amount, display.numbers(message), display.time_left(message))
    return "  ".join(part for part in parts if part)
