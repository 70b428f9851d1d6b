"""Whole generations with several workers, which are real processes: kills, damage, endless answers."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spin_core.inference.shards import Shards, shard_name, work_folder
from spin_core.phases import join as join_phase
from spin_core.runtime import launch, phase, process
from spin_core.store import artifacts
from spin_core.store.identity import identity_of
from tests.support.lineages.generation import EOS, generate_job, prompt_set, run_generation


def start_joining(job, folder: Path, name: str) -> subprocess.Popen:
    """Start a worker as another machine does; returns once it waits for the run to begin."""
    path = folder / f"{name}.json"
    path.write_text(job.model_dump_json())
    log = folder / f"{name}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "spin_core.phases.join", str(path)], stdout=subprocess.DEVNULL, stderr=stderr
        )
    until(lambda: "waiting for the run" in log.read_text(), process, log)
    return process


def until(true, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Enough prompts for several workers at the same time."""
    return prompt_set(tmp_path_factory.mktemp("many") / "prompts", rows=60, stop_ids=(EOS,))


SETTINGS = {"shard_size": 3, "max_new_tokens": 60}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_model, many):
    """The generation of one worker."""
    return run_generation(generate_job(tmp_path_factory.mktemp("alone") / "generations", tiny_model, many, **SETTINGS))


def kill_during_a_shard(worker: subprocess.Popen, job, log: Path) -> None:
    """Kill a worker while it holds a claim."""
    held = lambda: [holder for _, holder in claims_of(job).holders() if holder["pid"] == worker.pid]  # noqa: E731
    until(held, worker, log)
    worker.kill()
    worker.wait()


def claims_of(job) -> Shards:
    return Shards(phase.scratch_of(job.output), work_folder(job), 20)


@pytest.mark.slow
def test_three_workers_of_which_one_is_killed_make_the_same_as_one(tmp_path, tiny_model, many, alone):
    job = generate_job(tmp_path / "generations", tiny_model, many, **SETTINGS)
    helper, victim = (start_joining(job, tmp_path, name) for name in ("helper", "victim"))
    killer = threading.Thread(target=kill_during_a_shard, args=(victim, job, tmp_path / "victim.log"))
    killer.start()
    record = run_generation(job)
    killer.join()
    assert helper.wait(60) == 0
    assert record.digest == alone.digest
    timings = [json.loads(line) for line in (record.path / "log" / "timing.jsonl").read_text().splitlines()]
    assert len(timings) == record.shards == 20
    assert {f"{os.uname().nodename}:{pid}" for pid in (os.getpid(), helper.pid)} <= {
        timing["worker"] for timing in timings
    }
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["generations"]
    assert artifacts.verify(record.path) == []


@pytest.mark.slow
def test_the_phase_starts_its_own_workers_and_leaves_none_behind(tmp_path, tiny_model, many, alone):
    job = generate_job(tmp_path / "generations", tiny_model, many, speed={"workers": 2}, **SETTINGS)
    assert job.config.speed.workers == 2
    assert work_folder(job).name == work_folder(without_speed(job)).name
    seen = set()
    messages = []

    def watch(message):
        messages.append(message)
        seen.update(holder["pid"] for _, holder in claims_of(job).holders())

    record = launch.run_phase(job, type(alone), watch)
    assert record.digest == alone.digest
    assert [pid for pid in seen if process.start_time(pid)] == []
    assert messages[-1]["done"] == messages[-1]["total"] == 60
    assert messages[-1]["metrics"]["answers/s"] > 0
    assert messages[-1]["metrics"]["seconds left"] == 0


def without_speed(job):
    return job.model_copy(update={"config": job.config.model_copy(update={"speed": type(job.config.speed)()})})


@pytest.mark.slow
def test_a_run_without_its_own_worker_waits_for_others(tmp_path, tiny_model, many, alone):
    job = generate_job(tmp_path / "generations", tiny_model, many, speed={"workers": 0}, **SETTINGS)
    worker = start_joining(job, tmp_path, "worker")
    record = run_generation(job)
    assert worker.wait(60) == 0
    assert record.digest == alone.digest
    lines = (record.path / "log" / "timing.jsonl").read_text().splitlines()
    assert {json.loads(line)["worker"] for line in lines} == {f"{os.uname().nodename}:{worker.pid}"}


def test_a_worker_that_joins_a_published_job_has_nothing_to_do(tiny_model, many, alone):
    job = generate_job(alone.path, tiny_model, many, **SETTINGS)
    assert not join_phase.wait_until_begun(job, lambda: None)


def test_damaged_shards_are_made_again(tmp_path, tiny_model, many, alone, caplog):
    job = generate_job(tmp_path / "generations", tiny_model, many, **SETTINGS)
    scratch = phase.workspace(job.output, identity_of(job))
    for number in range(4):
        (scratch / f"{shard_name(number)}.parquet").write_bytes(
            (alone.path / f"{shard_name(number)}.parquet").read_bytes()
        )
    with (scratch / "shard-00001.parquet").open("r+b") as file:
        file.truncate(500)  # as after a power cut
    (scratch / "shard-00002.parquet").write_bytes((alone.path / "shard-00007.parquet").read_bytes())
    assert run_generation(job).digest == alone.digest
    assert [number for number in range(20) if f"{shard_name(number)}.parquet is damaged" in caplog.text] == [1, 2]


def test_answers_of_a_model_that_never_stops_are_cut_counted_and_reported(tmp_path, tiny_model, caplog):
    prompts = prompt_set(tmp_path / "prompts", rows=6, stop_ids=(10_000,))
    record = run_generation(generate_job(tmp_path / "generations", tiny_model, prompts, max_new_tokens=9))
    assert record.finish_reasons == {"length": 6}
    assert record.tokens == 6 * 9
    assert "none of the 6 answers ended by itself" in caplog.text
