"""Scoring model versions, on this machine, or on a Ray cluster if the configuration has one."""

import time
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from spin_core.config.generate import RayConfig
from spin_core.errors import PhaseCrashed, SpinError, WorkersLost, first_line
from spin_core.lineage import rescore, suite_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.runtime import launch
from spin_core.store import lock
from spin_core.store.evaluation_jobs import SuiteJob
from spin_core.store.records import EvalReport, ModelVersion, PromptSet
from tasks import display
from tasks.cluster import Future, has_ended, runner_on
from tasks.phase_task import RETRIES, RETRY_DELAY_SECONDS, may_pass, phase_task, run

Reports = tuple[EvalReport, ...]


@phase_task(EvalReport, "evaluate {model} {job.output.name}")
def run_suite(model: str, job: SuiteJob) -> SuiteJob:  # noqa: ARG001 (for its name)
    """Run one suite on one model."""
    return job


def evaluate(
    lineage: Lineage,
    player: ModelVersion,
    prompts: PromptSet | None,
    against: Reports = (),
    *,
    folder: Path | None = None,
    temperature: float | None = None,
    score_again: bool = True,
) -> Reports:
    """Score one model with every suite of the configuration, and return the reports.

    Args:
        lineage: The lineage.
        player: The model.
        prompts: The SFT data, for suites that use held-out prompts.
        against: The reports of the player's opponent.
        folder: The folder of the reports; None for that of the version.
        temperature: The sampling temperature; None for the configuration's.
        score_again: Whether suites scored with other settings are scored again.

    Raises:
        StaleArtifact: A suite was scored with other settings, and `score_again` is off.
    """
    opponent = next((report for report in against if report.suite == "self-play"), None)
    model = folder.parent.name if folder else f"θ_{player.t}"
    jobs = suite_jobs.evaluate_jobs(lineage, player, prompts, opponent, folder, temperature, against)
    if not score_again:
        rescore.check(jobs, lineage.name)
    for job in jobs:
        show_note(rescore.prepare_folder(job))
    ray = lineage.config.evaluate.speed.ray
    remote = [job for job in jobs if launch.finished_record(job, EvalReport) is None] if ray is not None else []
    if ray is not None and remote:
        run_on_cluster(ray, model, remote)
    return tuple(_published(job) if job in remote else run_suite(model, job) for job in jobs)


def show_note(note: str) -> None:
    """Show a note to the user and log it, unless it is empty."""
    if note:
        display.current.noted(note)
        get_run_logger().info(note)


def _published(job: SuiteJob) -> EvalReport:
    """Read the report of a suite that ran on another machine from the shared folder."""
    record = launch.finished_record(job, EvalReport)
    assert record is not None, f"{job.output} is published"
    return record


@task(
    name="run-suite-on-ray",
    task_run_name="evaluate {model} {job.output.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=may_pass,
)
def run_suite_on_ray(model: str, job: SuiteJob) -> None:  # noqa: ARG001 (for its name)
    """Run one suite on one model, on the machine of the cluster that executes this task."""
    # A machine that Ray takes for dead may still be running the same suite in the same scratch folder.
    with lock.locked(launch.job_path(job).with_suffix(""), wait=True):
        run(job, EvalReport)


def run_on_cluster(ray: RayConfig, model: str, jobs: Sequence[SuiteJob]) -> None:
    """Run suites on the cluster, `ray.workers` at a time. When all have ended, raise the first failure."""
    shown, name, began = display.current, f"evaluate {model} on ray", time.monotonic()
    shown.started(name)
    failures: list[BaseException] = []
    waiting, running, done = list(jobs), list[tuple[SuiteJob, Future]](), 0
    try:
        with runner_on(ray, "evaluate", restarts=RETRIES) as runner:
            while waiting or running:
                while waiting and len(running) < ray.workers:
                    job = waiting.pop(0)
                    running.append((job, runner.submit(run_suite_on_ray, {"model": model, "job": job})))
                shown.progress({"done": done, "total": len(jobs), "unit": "suite"})
                for job, future in running[:]:
                    if has_ended(future):
                        running.remove((job, future))
                        done += 1
                        failures += _log_failure(job, future)
        shown.progress({"done": done, "total": len(jobs), "unit": "suite"})
        if failures:
            raise failures[0]
    except BaseException:
        shown.failed(name)
        raise
    shown.finished(name, time.monotonic() - began)


def _log_failure(job: SuiteJob, future: Future) -> list[BaseException]:
    """Log why a suite failed, and return its error; empty if it succeeded.

    The error is logged at once, because the other suites may run for a long time.
    """
    error = future.result(raise_on_failure=False)
    if not isinstance(error, BaseException):
        return []
    get_run_logger().error("%s: %s", job.output.name, first_line(error))
    if isinstance(error, PhaseCrashed | SpinError):
        return [error]
    lost = WorkersLost(
        f"{job.output} was started {RETRIES + 1} times on the cluster, and its worker died each time "
        f"({first_line(error)}): check the nodes' logs and memory, and run the same command again"
    )
    lost.__cause__ = error
    return [lost]
