"""Workers on a cluster that all fail, and what the run makes of it. Futures are plain, the worker that dies is real."""

import contextlib
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest

from spin_core.config.generate import GenerateConfig
from spin_core.config.model import ModelConfig
from spin_core.config.resolve import resolve
from spin_core.errors import PhaseCrashed, WorkersLost
from spin_core.inference import shard_loop, shards, workers
from spin_core.inference.shard_loop import make_shards
from spin_core.inference.shards import WORKERS_ENDED, Shards, shard_name
from spin_core.lineage.lineage import Lineage
from spin_core.runtime import interpreter, launch, phase
from spin_core.store.identity import identity_of
from tasks import generate
from tests.support.lineages.generation import EOS, generate_job, prompt_set, run_generation
from tests.support.lineages.small_jobs import version_of


@dataclass
class Worker:
    """A future as Prefect's are."""

    future: Future

    def wait(self, timeout=None):
        wait([self.future], timeout)

    def result(self, timeout=None, raise_on_failure=True):
        if not raise_on_failure and self.future.done():
            return self.future.exception() or self.future.result()
        return self.future.result(timeout)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(shard_loop, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(generate, "LOOK_SECONDS", 0.1)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return prompt_set(tmp_path_factory.mktemp("prompts") / "prompts", rows=20, stop_ids=(EOS,))


@pytest.mark.slow
def test_a_run_whose_workers_all_die_reports_why_and_keeps_finished_shards(tmp_path, tiny_model, prompts):
    whole = run_generation(generate_job(tmp_path / "whole", tiny_model, prompts))
    job = generate_job(tmp_path / "generations", tiny_model, prompts, speed={"workers": 0})
    scratch = phase.workspace(job.output, identity_of(job))
    (scratch / f"{shard_name(2)}.parquet").write_bytes((whole.path / f"{shard_name(2)}.parquet").read_bytes())
    # The workers' machines do not have the model under this path.
    elsewhere = job.model_copy(update={"opponent": job.opponent.model_copy(update={"path": Path("/nowhere/model")})})
    path = launch.write_job(elsewhere)
    other = Future()
    other.set_exception(PhaseCrashed("it ended with status 2\nthe machine is gone"))
    with ThreadPoolExecutor(1) as pool:
        futures = [Worker(other), Worker(pool.submit(workers.join_generation, path)), Worker(other)]
        with generate.watched(futures, job), pytest.raises(WorkersLost) as lost:
            run_generation(job)
    message = str(lost.value)
    assert message.startswith("no worker is left, and 3 of 4 shards are missing (2 ended with: the machine is gone; ")
    assert "; 1 ended with: ModelError: " in message
    assert "/nowhere/model" in message
    assert message.endswith(": fix that and run the same command again; finished shards are kept")
    assert "\n" not in message
    assert [path.name for path in scratch.glob("shard-*")] == [f"{shard_name(2)}.parquet"]
    again = job.model_copy(update={"config": job.config.model_copy(update={"speed": type(job.config.speed)()})})
    assert run_generation(again).digest == whole.digest


@pytest.mark.parametrize("error", [None, ValueError("one\ntwo"), KeyError()])
def test_a_worker_is_quoted_with_its_last_line(error):
    future = Future()
    assert generate.last_line(Worker(future)) is None
    future.set_exception(error) if error else future.set_result(None)
    assert generate.last_line(Worker(future)) == ("all is done" if error is None else str(error)[4:] or "KeyError")


@pytest.fixture
def folder(tmp_path):
    for name in ("final", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.timeout(60)
def test_a_worker_that_joined_by_itself_continues_when_the_others_have_failed(folder):
    own_shards, other_shards = (Shards(folder / "final", folder / "work", 4) for _ in range(2))
    (folder / "work" / WORKERS_ENDED).write_text("1 ended with: out of memory")

    def slowly(claim):
        time.sleep(0.4)
        other_shards.publish(claim.number, Path.touch)

    helper = threading.Thread(target=make_shards, args=(other_shards, slowly))
    helper.start()
    make_shards(own_shards, None)
    helper.join()
    assert own_shards.missing() == []


@pytest.mark.timeout(60)
def test_the_last_message_of_one_attempt_does_not_end_the_next(folder, tmp_path, tiny_model, prompts):
    own_shards = Shards(folder / "final", folder / "work", 4)
    note = folder / "work" / WORKERS_ENDED
    note.write_text("1 ended with: out of memory\n")
    with pytest.raises(WorkersLost, match=r"4 of 4 shards are missing \(1 ended with: out of memory\): fix that"):
        make_shards(own_shards, None)
    assert not note.exists()
    job = generate_job(tmp_path / "generations", tiny_model, prompts)
    stale = shards.work_folder(job) / WORKERS_ENDED
    stale.parent.mkdir()
    stale.write_text("another attempt's")
    with generate.watched([Worker(Future())], job):
        assert not stale.exists()


@pytest.mark.parametrize(
    ("gpu_here", "gpus", "engine", "is_warned"),
    [(False, 1, "auto", True), (True, 1, "auto", False), (False, 0, "auto", False), (False, 1, "transformers", False)],
)
def test_auto_warns_that_it_inspects_this_machine_if_only_workers_have_gpus(
    tmp_path, tiny_model, prompts, monkeypatch, gpu_here, gpus, engine, is_warned
):
    speed = {"workers": 0, "ray": {"address": "auto", "gpus": gpus}}
    config = resolve("demo").model_copy(update={"generate": GenerateConfig(engine=engine, speed=speed)})
    config = config.model_copy(update={"model": ModelConfig()})
    monkeypatch.setattr(interpreter, "sees_gpu", lambda: gpu_here)
    monkeypatch.setattr(interpreter, "vllm_python", lambda _: Path("/no/vllm"))
    assert (interpreter.explain_engine(config.generate, config.model) == interpreter.GPUS_ELSEWHERE) == is_warned
    lines = []
    monkeypatch.setattr(generate.display.current, "noted", lines.append)
    monkeypatch.setattr(generate, "get_run_logger", lambda: logging.getLogger("spin_core"))
    monkeypatch.setattr(generate, "workers_on", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(generate, "answer", lambda *_: None)
    generate.generate(Lineage(tmp_path, "tale", config), 0, version_of(tiny_model), prompts)
    assert lines == ([interpreter.GPUS_ELSEWHERE] if is_warned else [])
