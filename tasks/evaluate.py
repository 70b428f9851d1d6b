"""Scoring model versions, on this machine, or on a Ray cluster where the configuration names one."""

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
    """One suite on one model."""
    return job


def evaluate(
    game: Lineage,
    player: ModelVersion,
    prompts: PromptSet | None,
    against: Reports = (),
    *,
    folder: Path | None = None,
    temperature: float | None = None,
    anew: bool = True,
) -> Reports:
    """Every suite that the configuration asks for, on one model. `against` are its opponent's reports.

    What was scored under other settings is scored `anew`, or else refused with `StaleArtifact`.
    """
    opponent = next((report for report in against if report.suite == "self-play"), None)
    model = folder.parent.name if folder else f"θ_{player.t}"
    jobs = suite_jobs.evaluate_jobs(game, player, prompts, opponent, folder, temperature, against)
    if not anew:
        rescore.check(jobs, game.name)
    for job in jobs:
        tell(rescore.prepare_folder(job))
    ray = game.config.evaluate.speed.ray
    elsewhere = [job for job in jobs if launch.finished(job, EvalReport) is None] if ray is not None else []
    if ray is not None and elsewhere:
        run_on_cluster(ray, model, elsewhere)
    return tuple(published(job) if job in elsewhere else run_suite(model, job) for job in jobs)


def tell(note: str) -> None:
    """Tell a person, if there is something to tell."""
    if note:
        display.current.noted(note)
        get_run_logger().info(note)


def published(job: SuiteJob) -> EvalReport:
    """The record of a suite that has been run elsewhere, as it lies in the shared folder."""
    record = launch.finished(job, EvalReport)
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
def run_suite_there(model: str, job: SuiteJob) -> None:  # noqa: ARG001 (for its name)
    """One suite on one model, on whichever machine of the cluster this runs on."""
    # A machine that Ray has taken for dead may still be at work on the same suite, in the same scratch folder.
    with lock.locked(launch.job_path(job).with_suffix(""), wait=True):
        run(job, EvalReport)


def run_on_cluster(ray: RayConfig, model: str, jobs: Sequence[SuiteJob]) -> None:
    """Run suites on the cluster, `ray.workers` at a time. The first failure is raised when all have ended."""
    shown, name, began = display.current, f"evaluate {model} on ray", time.monotonic()
    shown.started(name)
    failures: list[BaseException] = []
    todo, at_work, done = list(jobs), list[tuple[SuiteJob, Future]](), 0
    try:
        with runner_on(ray, "evaluate", restarts=RETRIES) as runner:
            while todo or at_work:
                while todo and len(at_work) < ray.workers:
                    job = todo.pop(0)
                    at_work.append((job, runner.submit(run_suite_there, {"model": model, "job": job})))
                shown.progress({"done": done, "total": len(jobs), "unit": "suite"})
                for job, future in at_work[:]:
                    if has_ended(future):
                        at_work.remove((job, future))
                        done += 1
                        failures += failure_of(job, future)
        shown.progress({"done": done, "total": len(jobs), "unit": "suite"})
        if failures:
            raise failures[0]
    except BaseException:
        shown.failed(name)
        raise
    shown.finished(name, time.monotonic() - began)


def failure_of(job: SuiteJob, future: Future) -> list[BaseException]:
    """Why a suite that has ended failed, told at once: the others may be at work for long. Empty if it did not."""
    error = future.result(raise_on_failure=False)
    if not isinstance(error, BaseException):
        return []
    get_run_logger().error("%s: %s", job.output.name, first_line(error))
    if isinstance(error, PhaseCrashed | SpinError):
        return [error]
    lost = WorkersLost(
        f"{job.output} was begun {RETRIES + 1} times on the cluster, and its worker died each time "
        f"({first_line(error)}): see the nodes' logs and memory, and run the same command again"
    )
    lost.__cause__ = error
    return [lost]
