"""Benchmarks that are stopped or killed."""

import signal
from pathlib import Path
from random import Random

import pytest
from lm_eval.models.huggingface import HFLM

from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import Stopped
from spin_core.models.files import save_model
from spin_core.models.loading import load_model
from spin_core.phases.benchmark import run
from spin_core.runtime import phase
from spin_core.runtime import progress as runtime_progress
from spin_core.store import artifacts
from spin_core.store.records import EvalReport
from tests.support.lineages.benchmark_jobs import benchmark_job, data, model, phrase, run_benchmark, write_rows
from tests.support.lineages.small_jobs import CPU, start_job, wait_for_progress

__all__ = ["data", "model"]


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """How many sequences lm-eval's model is given, batch by batch."""
    sizes: list[int] = []

    def counted(method):
        def call(self, *args, **kwargs):
            sizes.append(len(args[0] if args else kwargs["context"]))
            return method(self, *args, **kwargs)

        return call

    for name in ("_model_call", "_model_generate"):
        monkeypatch.setattr(HFLM, name, counted(getattr(HFLM, name)))
    return sizes


def test_a_stopped_run_keeps_finished_tasks_and_the_answers_of_the_unfinished_one(
    tmp_path, model, data, batches, monkeypatch
):
    whole = run_benchmark(benchmark_job(tmp_path / "other" / "whole", model, data, "arc_easy", "winogrande"))
    undisturbed = [batches.pop(0) for _ in range(12)]
    assert not batches
    job, progress = (
        benchmark_job(tmp_path / "stopped", model, data, "arc_easy", "winogrande"),
        runtime_progress.Progress(),
    )
    monkeypatch.setattr(progress, "show", lambda done: progress.stop() if done >= 1.5 else None)
    with pytest.raises(Stopped):
        phase.execute(job, EvalReport, run, progress)
    assert kept(tmp_path) == ["arc_easy"]
    assert batches == undisturbed[:10]
    again = run_benchmark(job)
    assert batches == undisturbed
    assert (again.digest, again.scores) == (whole.digest, whole.scores)
    assert kept(tmp_path) == ["arc_easy", "winogrande"]


@pytest.mark.slow
def test_a_run_that_is_killed_within_a_task_requests_only_missing_answers(tmp_path, model, batches):
    # A context of 512 tokens: each prompt is longer than that, and each answer, of half of it, takes part of a second.
    network, tokenizer = load_model(model, CPU), load_tokenizer(model, CPU)
    network.config.max_position_embeddings = 512
    model = tmp_path / "short"
    save_model(network, tokenizer, model)
    rows = [{"question": phrase(Random(i), 250 + i), "answer": f"#### {i}"} for i in range(5)]
    write_rows(tmp_path, "gsm8k_test", rows)
    undisturbed, killed = (
        benchmark_job(tmp_path / name / "lm-eval", model, tmp_path, "gsm8k", num_fewshot=0, batch_size=1)
        for name in ("undisturbed", "killed")
    )
    whole = run_benchmark(undisturbed)
    assert batches == [1] * 5
    batches.clear()
    with start_job(killed, tmp_path) as process:
        before = round(5 * wait_for_progress(process, 0.4))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert kept(tmp_path / "killed") == []
    again = run_benchmark(killed)
    # One more may have been answered before the signal arrived.
    assert 0 < len(batches) <= 5 - before
    assert (again.digest, again.scores, again.notes) == (whole.digest, whole.scores, whole.notes)
    assert "5 of 5 prompts are longer" in again.notes[0]
    assert not list(tmp_path.rglob(".answers.jsonl"))


def kept(folder: Path) -> list[str]:
    """The tasks whose results are kept, in the order in which they were scored."""
    entries = [path.parent for path in (folder / ".scores").glob("*/scores/manifest.json")]
    entries.sort(key=lambda entry: (entry / "manifest.json").stat().st_mtime)
    return [artifacts.read_record(entry, EvalReport).suite for entry in entries]
