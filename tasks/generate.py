"""The opponent answers, by workers on this machine, and on a Ray cluster where the configuration names one."""

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
    game: Lineage, t: int, opponent: ModelVersion, prompts: PromptSet, answerers: Sequence[ModelVersion] = ()
) -> GenerationBatch:
    """y' ~ p_θt(.|x) for every training prompt."""
    job = phase_jobs.generate_job(game, t, opponent, prompts, answerers)
    ray = job.config.speed.ray
    if ray is None or launch.finished(job, GenerationBatch) is not None:
        return answer(game, t, opponent, prompts, answerers)
    if job.config.engine == "transformers" and interpreter.gpus_elsewhere(game.config.generate, game.config.model):
        display.current.noted(interpreter.GPUS_ELSEWHERE)
        get_run_logger().warning("%s", interpreter.GPUS_ELSEWHERE)
    with workers_on(ray, job):
        return answer(game, t, opponent, prompts, answerers)


@phase_task(GenerationBatch, "generate t={t}")
def answer(
    game: Lineage, t: int, opponent: ModelVersion, prompts: PromptSet, answerers: Sequence[ModelVersion]
) -> GenerateJob:
    """The phase itself: it begins the shards, sees to it that all are done, and publishes."""
    return phase_jobs.generate_job(game, t, opponent, prompts, answerers)


@task(name="answer-on-ray", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=1)
def join(job_file: Path) -> None:
    """Answer shards on whichever machine of the cluster this runs on, until all are there."""
    workers.join_generation(job_file)


@contextlib.contextmanager
def workers_on(ray: RayConfig, job: GenerateJob) -> Iterator[None]:
    """Workers on the cluster while this lasts. One that dies is started again; its shard goes to another meanwhile."""
    path = launch.write_job(job)
    with runner_on(ray, "generate", restarts=-1) as runner:
        futures = [runner.submit(join, {"job_file": path}) for _ in range(ray.workers)]
        with watched(futures, job):
            yield
        for future in futures:
            future.wait(grace.GRACE_SECONDS)


@contextlib.contextmanager
def watched(futures: Sequence[Future], job: GenerateJob) -> Iterator[None]:
    """While this lasts, look whether a worker is left. The phase learns from the last one's end, so that it ends too
    if there is still something to do and nobody here to do it.
    """
    note = shards.work_folder(job) / shards.WORKERS_ENDED
    note.unlink(missing_ok=True)  # an earlier attempt's
    over = threading.Event()

    def watch() -> None:
        words = []
        for future in futures:
            while (word := last_word(future)) is None:
                if over.is_set():
                    return
            words.append(word)
        while not note.parent.exists():  # the phase has not begun
            if over.wait(shards.POLL_SECONDS):
                return
        with contextlib.suppress(FileNotFoundError):  # it has published meanwhile
            files.write_text(note, "; ".join(f"{count} said: {word}" for word, count in Counter(words).items()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def last_word(future: Future) -> str | None:
    """The last line that a worker said; None while it is at work."""
    if not has_ended(future, LOOK_SECONDS):
        return None
    error = future.result(raise_on_failure=False)
    if not isinstance(error, BaseException):
        return "all is done"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
