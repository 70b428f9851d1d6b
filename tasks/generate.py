"""The opponent's answers, by workers on this machine, and on a Ray cluster if the configuration has one."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from spin_core.config.generate import RayConfig
from spin_core.inference import shards, workers
from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.runtime import grace, interpreter, launch
from spin_core.store import files
from spin_core.store.jobs import GenerateJob
from spin_core.store.records import GenerationBatch, ModelVersion, PromptSet
from tasks import display
from tasks.cluster import LOOK_SECONDS, Future, has_ended, runner_on
from tasks.phase_task import phase_task


def generate(
    lineage: Lineage, t: int, opponent: ModelVersion, prompts: PromptSet, answerers: Sequence[ModelVersion] = ()
) -> GenerationBatch:
    """Sample y' ~ p_θt(.|x) for every training prompt."""
    job = phase_jobs.generate_job(lineage, t, opponent, prompts, answerers)
    ray = job.config.speed.ray
    if ray is None or launch.finished_record(job, GenerationBatch) is not None:
        return answer(lineage, t, opponent, prompts, answerers)
    if job.config.engine == "transformers" and interpreter.gpus_elsewhere(
        lineage.config.generate, lineage.config.model
    ):
        display.current.noted(interpreter.GPUS_ELSEWHERE)
        get_run_logger().warning("%s", interpreter.GPUS_ELSEWHERE)
    with workers_on(ray, job):
        return answer(lineage, t, opponent, prompts, answerers)


@phase_task(GenerationBatch, "generate t={t}")
def answer(
    lineage: Lineage, t: int, opponent: ModelVersion, prompts: PromptSet, answerers: Sequence[ModelVersion]
) -> GenerateJob:
    """Run the phase: create the shards, wait until all are answered, and publish them."""
    return phase_jobs.generate_job(lineage, t, opponent, prompts, answerers)


@task(name="answer-on-ray", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=1)
def join(job_file: Path) -> None:
    """Answer shards on the machine of the cluster that executes this task, until all are answered."""
    workers.join_generation(job_file)


@contextlib.contextmanager
def workers_on(ray: RayConfig, job: GenerateJob) -> Iterator[None]:
    """Run workers on the cluster. One that dies is started again; meanwhile another worker takes its shard."""
    path = launch.write_job(job)
    with runner_on(ray, "generate", restarts=-1) as runner:
        futures = [runner.submit(join, {"job_file": path}) for _ in range(ray.workers)]
        with watched(futures, job):
            yield
        for future in futures:
            future.wait(grace.GRACE_SECONDS)


@contextlib.contextmanager
def watched(futures: Sequence[Future], job: GenerateJob) -> Iterator[None]:
    """Watch the workers on the cluster. When the last one has ended, write a file that the phase reads.

    So the phase also ends if shards are unfinished and this machine has no workers of its own.
    """
    note = shards.work_folder(job) / shards.WORKERS_ENDED
    note.unlink(missing_ok=True)  # from an earlier attempt
    over = threading.Event()

    def watch() -> None:
        last_lines = []
        for future in futures:
            while (line := last_line(future)) is None:
                if over.is_set():
                    return
            last_lines.append(line)
        while not note.parent.exists():  # the phase has not started
            if over.wait(shards.POLL_SECONDS):
                return
        with contextlib.suppress(FileNotFoundError):  # it has published in the meantime
            files.write_text(
                note, "; ".join(f"{count} ended with: {line}" for line, count in Counter(last_lines).items())
            )

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def last_line(future: Future) -> str | None:
    """The last line of a worker's error, or `all is done`; None while it is running."""
    if not has_ended(future, LOOK_SECONDS):
        return None
    error = future.result(raise_on_failure=False)
    if not isinstance(error, BaseException):
        return "all is done"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
