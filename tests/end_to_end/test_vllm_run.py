"""Games in which vLLM answers, on its CPU build: the phases one after the other, as `spin run` calls them."""

import contextlib
import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from spin_core.config.generate import VllmConfig
from spin_core.config.resolve import resolve
from spin_core.inference.engine import Request
from spin_core.inference.factory import make_engine
from spin_core.inference.shards import Shards, work_folder
from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.runtime import interpreter, phase
from spin_core.runtime.launch import run_phase
from spin_core.store import identity as store_identity
from spin_core.store import lock
from spin_core.store.records import GenerationBatch, ModelVersion, PairDataset, PromptSet, ScoredPairs, TrainRun
from tests.support.lineages.small_jobs import CPU, version_of
from tests.support.models.vllm_models import save_model, save_stacked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not interpreter.vllm_python(VllmConfig()).exists(), reason="no vLLM: make vllm installs it"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def iteration(tmp_path_factory, model):
    """A lineage with its first iteration trained: the lineage, θ_0, prompts, answers, training, and vLLM's log."""
    sets = [
        f"model.path={model}", "model.device=cpu", "prompts.sample=24", "prompts.held_out=4", "generate.engine=vllm",
        "generate.max_new_tokens=12", "generate.shard_size=10", "generate.vllm.speed.cache_gb=0.0625",
        "train.batch_size=8", "train.epochs=2", "train.learning_rate=0.003", "controls={}",
    ]  # fmt: skip
    runs = tmp_path_factory.mktemp("runs")
    with lock.locked(runs / "tale"):
        lineage = start_lineage(runs, "tale", resolve("demo", sets=sets))
    theta_0 = run_phase(phase_jobs.base_job(lineage), ModelVersion)
    prompts = run_phase(phase_jobs.prompts_job(lineage, theta_0), PromptSet)
    log = []
    generations = run_phase(phase_jobs.generate_job(lineage, 0, theta_0, prompts), GenerationBatch, on_log=log.append)
    pairs = run_phase(phase_jobs.pairs_job(lineage, 0, prompts, generations, None), PairDataset)
    scores = run_phase(phase_jobs.score_job(lineage, 0, theta_0, pairs), ScoredPairs)
    training = run_phase(phase_jobs.train_job(lineage, 0, theta_0, pairs, scores), TrainRun)
    return lineage, theta_0, prompts, generations, training, log


def test_an_iteration_sampled_by_vllm_starts_at_log_2(tmp_path, iteration):
    lineage, theta_0, prompts, generations, training, log = iteration
    assert training.first_loss == pytest.approx(math.log(2), abs=1e-5)
    assert generations.rows == 24
    assert any("answering with vLLM" in line for line in log)
    assert "vllm" in json.loads((generations.path / "manifest.json").read_text())["usage"]["environment"]
    # The same shard comes out the same where the others are there already: what a second worker, or a restart, makes.
    job = phase_jobs.generate_job(lineage, 0, theta_0, prompts).model_copy(
        update={"output": tmp_path / "again" / "generations"}
    )
    shards = sorted(generations.path.glob("shard-*.parquet"))
    assert len(shards) == 3
    scratch = tmp_path / "again" / ".generations.partial"
    scratch.mkdir(parents=True)
    shutil.copyfile(shards[0], scratch / shards[0].name)
    identity = store_identity.digest_of(store_identity.identity_of(job))
    (tmp_path / "again" / ".generations.identity").write_text(identity)
    again = run_phase(job, GenerationBatch)
    assert again.digest == generations.digest
    assert [pq.read_table(again.path / shard.name) for shard in shards] == [pq.read_table(shard) for shard in shards]


def test_one_worker_and_two_answer_for_a_trained_version_as_transformers_does(tmp_path, iteration, monkeypatch):
    lineage, theta_0, prompts, *_ = iteration
    theta_1 = lineage.player(0)
    one_worker, two_workers, transformers = (
        greedy(phase_jobs.generate_job(lineage, 1, theta_1, prompts), tmp_path / name / "generations", **speed)
        for name, speed in (("one", {}), ("two", {"workers": 2}), ("plain", {"engine": "transformers"}))
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = run_phase(one_worker, GenerationBatch)
    assert answers(alone) == transformers_says(transformers)
    assert answers(alone) != transformers_says(transformers.model_copy(update={"opponent": theta_0}))
    cores, log = {}, []
    watching = threading.Thread(target=hold_until_both_answer, args=(two_workers, cores), daemon=True)
    watching.start()
    both = run_phase(two_workers, GenerationBatch, on_log=log.append)
    watching.join()
    assert both.digest == alone.digest
    timings = [json.loads(line) for line in (both.path / "log" / "timing.jsonl").read_text().splitlines()]
    assert (len(timings), len({timing["worker"] for timing in timings})) == (12, 2)
    assert len([line for line in log if "answering with vLLM" in line]) == 2
    # Neither is bound to a core, where it would meet the other.
    assert len(cores) == 2
    assert all(allowed == cores_of(os.getpid()) for allowed in cores.values())


def greedy(job, output: Path, workers=1, engine="vllm"):
    """The job with answers that are not left to chance, in shards of two."""
    speed = job.config.speed.model_copy(update={"workers": workers})
    config = {"temperature": 1e-6, "shard_size": 2, "speed": speed, "engine": engine}
    return job.model_copy(update={"output": output, "config": job.config.model_copy(update=config)})


def answers(batch: GenerationBatch) -> list:
    tables = [pq.read_table(path) for path in sorted(batch.path.glob("shard-*.parquet"))]
    return [ids for table in tables for ids in table["response_ids"].to_pylist()]


def transformers_says(job) -> list:
    """The transformers engine's answers to a job's prompts."""
    rows = pq.read_table(job.prompts.path / "train.parquet")["prompt_ids"].to_pylist()
    engine = make_engine(job.opponent.path, CPU, job.prompts.stop_ids, job.config, 1)
    by_index = dict(engine.answer([Request(prompt, 0) for prompt in rows]))
    return [by_index[place].response_ids for place in range(len(rows))]


def hold_until_both_answer(job, cores: dict[int, set[str]]) -> None:
    """Stop the worker that is up first until the other one has a shard too: on a busy machine it would answer all."""
    deadline, first = time.monotonic() + 240, None
    while len(cores) < 2 and time.monotonic() < deadline:
        cores.update(cores_of_workers(job))
        if cores and first is None:
            (first, *_) = cores
            os.kill(first, signal.SIGSTOP)
        time.sleep(0.01)
    if first is not None:
        os.kill(first, signal.SIGCONT)


def cores_of_workers(job) -> dict[int, set[str]]:
    """On which cores the threads of each process may run that holds a claim."""
    folder = work_folder(job)
    holders = Shards(phase.scratch_of(job.output), folder, 12).holders() if folder.exists() else []
    return {who["pid"]: allowed for _, who in holders if (allowed := cores_of(who["pid"]))}


def cores_of(pid: int) -> set[str]:
    """`{"0-1"}`; nothing of a process that has ended."""
    cores = set()
    for task in Path("/proc", str(pid), "task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            cores.add((task / "status").read_text().split("Cpus_allowed_list:")[1].split()[0])
    return cores


def test_one_process_answers_for_every_version_of_a_mixture(tmp_path, model):
    """Each shard is by its version: greedily, exactly the answers of the transformers engine."""
    sets = [
        f"model.path={model}", "model.device=cpu", "prompts.sample=24", "prompts.held_out=4", "generate.shard_size=10",
        "generate.temperature=0.000001", "generate.max_new_tokens=12", "generate.vllm.speed.cache_gb=0.0625",
        "generate.engine=vllm", "controls={}",
    ]  # fmt: skip
    lineage = Lineage(tmp_path, "tale", resolve("demo", sets=sets))
    theta_0 = run_phase(phase_jobs.base_job(lineage), ModelVersion)
    prompts = run_phase(phase_jobs.prompts_job(lineage, theta_0), PromptSet)
    theta_1 = version_of(save_stacked(model, tmp_path / "stacked")).model_copy(update={"t": 1})
    job = phase_jobs.generate_job(lineage, 1, theta_1, prompts, (theta_1, theta_0))
    plain = job.model_copy(
        update={"output": tmp_path / "plain", "config": job.config.model_copy(update={"engine": "transformers"})}
    )
    mixed, same = (run_phase(generate_job, GenerationBatch) for generate_job in (job, plain))
    assert set(mixed.opponents) == {"0", "1"}
    assert mixed.opponents == same.opponents
    shards = sorted(shard.name for shard in mixed.path.glob("shard-*.parquet"))
    assert len(shards) >= 3
    for shard in shards:
        assert pq.read_table(mixed.path / shard).equals(pq.read_table(same.path / shard))
