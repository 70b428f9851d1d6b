"""Training and scoring when memory runs out: passes shrink, and results stay the same."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from spin_core.errors import ModelError, TryAgain
from spin_core.phases import score
from spin_core.preflight import fit
from spin_core.runtime.memory.batch_limit import BatchLimit
from spin_core.store.training_log import METRICS, TIMING, read_rows
from spin_core.training import loop
from spin_core.training.gradient import within_memory
from spin_core.training.train_data import Batch
from tests.support.helpers import ROOT, data_folder
from tests.support.lineages.small_jobs import random_pairs, random_train_job, run_job, score_job, version_of


def out_of_memory(*_args):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_training_takes_what_fits_and_records_it(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(fit, "free_memory", lambda _device: (10, "there"))
    record = run_job(random_train_job(tmp_path, tiny_model))
    assert record.micro_batch_tokens == ((record.steps, fit.LEAST_TOKENS),)


def test_a_training_whose_memory_runs_out_goes_on_with_smaller_passes_to_the_same_weights(
    tmp_path, tiny_model, monkeypatch
):
    whole = run_job(random_train_job(tmp_path / "whole", tiny_model))
    forward_backward, passes = loop.forward_backward, []

    def cramped(batch, *args):
        result = forward_backward(batch, *args)  # its gradient is there when memory runs out
        if len(passes) > 1 and batch.max_tokens > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        passes.append(batch.max_tokens)
        return result

    monkeypatch.setattr(loop, "forward_backward", cramped)
    record = run_job(random_train_job(tmp_path / "cramped", tiny_model))
    assert passes[:2] == [16384, 16384]
    assert set(passes[2:]) == {64}
    assert record.micro_batch_tokens == ((2, 16384), (record.steps - 2, 64))
    rows = read_rows(record.path / METRICS)
    assert rows == [pytest.approx(row, rel=1e-3, abs=1e-5) for row in read_rows(whole.path / METRICS)]
    assert {row["micro_batch_tokens"] for row in read_rows(record.path / TIMING)} == {16384, 64}


def test_a_users_number_is_not_halved(tmp_path, tiny_model, monkeypatch):
    job = random_train_job(tmp_path, tiny_model, micro_batch_tokens=512)
    monkeypatch.setattr(loop, "forward_backward", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        run_job(job)


def batch(max_tokens: int) -> Batch:
    return Batch([], None, np.array([[3, 5], [4, 2]]), 14, max_tokens)


def test_where_a_step_cannot_begin_again_the_next_attempt_has_smaller_passes(tmp_path):
    limit = BatchLimit([64], "tokens", tmp_path / "limit.json")
    with pytest.raises(TryAgain, match="the next attempt has at most 32 tokens"):
        within_memory(out_of_memory, batch(64), lambda: batch(limit.size), limit, lambda: False)


def test_one_pair_that_does_not_fit_is_an_error_for_the_user(tmp_path):
    limit = BatchLimit([64], "tokens", tmp_path / "limit.json")
    with pytest.raises(ModelError, match="not enough memory to train on one pair"):
        within_memory(out_of_memory, batch(64), lambda: batch(limit.size), limit, lambda: True)
    assert limit.sizes == [64, 32, 16, 8, 7], "the longest pair has 7 tokens in its responses"


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    def wrong(_batch):
        raise RuntimeError("shapes differ")

    limit = BatchLimit([64], "tokens", tmp_path / "limit.json")
    with pytest.raises(RuntimeError, match="shapes differ"):
        within_memory(wrong, batch(64), lambda: batch(limit.size), limit, lambda: True)


def test_a_scoring_whose_memory_runs_out_goes_on_with_smaller_passes(tmp_path, tiny_model, monkeypatch):
    pairs = random_pairs(tmp_path / "pairs")
    whole = run_job(score_job(tmp_path / "whole", version_of(tiny_model), pairs, micro_batch_tokens="auto"))
    score_sequences, sizes = score.score_sequences, []

    def cramped(logps, sequences, micro_batch_tokens, group_S):
        sizes.append(micro_batch_tokens)
        if micro_batch_tokens > 100:
            out_of_memory()
        return score_sequences(logps, sequences, micro_batch_tokens, group_S)

    monkeypatch.setattr(score, "score_sequences", cramped)
    record = run_job(score_job(tmp_path / "cramped", version_of(tiny_model), pairs, micro_batch_tokens="auto"))
    assert sizes[-1] == 64
    assert record.pairs == whole.pairs


@pytest.mark.slow
def test_a_process_that_may_take_little_memory_trains_to_the_same_losses(tmp_path):
    model = data_folder("models", "babyllama-105")

    def trained(megabytes: int) -> dict:
        arguments = [str(model), str(tmp_path / str(megabytes)), str(megabytes)]
        module = "tests.support.processes.limited_training"
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    whole, limited = trained(0), trained(300)
    assert whole["passes"] == [[4, 16384]]
    assert limited["passes"][-1][1] < 8192
    assert limited["losses"] == pytest.approx(whole["losses"], rel=1e-3)
