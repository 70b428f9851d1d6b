"""Trainings that were killed, and resume from their checkpoints."""

import itertools
import json
import signal

import pytest
import torch

from spin_core.phases import train as train_phase
from spin_core.store.identity import digest_file
from spin_core.store.training_log import METRICS, read_rows
from spin_core.training import checkpoint
from spin_core.training.checkpoint import CHECKPOINTS, TrainingRecorder, latest_checkpoint
from tests.support.lineages.small_jobs import (
    random_pairs,
    random_train_job,
    run_job,
    score_job,
    start_job,
    train_job,
    version_of,
    wait_for_progress,
)


class Killed(BaseException):
    """As if the process ended here."""


def die_at(monkeypatch, number: int) -> None:
    """End the `number`-th thing that is done to the disk in its middle, counted from 1."""
    count = itertools.count(1)

    def may_die(owner, name: str, half=lambda *_: None) -> None:
        real = getattr(owner, name)

        def call(*args, **kwargs):
            if next(count) == number:
                half(*args)
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    may_die(checkpoint, "save_file", lambda _tensors, path: path.write_bytes(b"half"))
    may_die(checkpoint.files, "write_json", lambda path, _value: path.write_text('{"st'))
    may_die(checkpoint.files, "sync")
    may_die(checkpoint.Path, "replace")
    may_die(checkpoint.shutil, "rmtree", lambda path, **_: [file.unlink() for file in sorted(path.glob("*"))[:1]])


def learn(folder, steps: int = 6) -> tuple[list[float], bytes]:
    """A training that is a number; the best steps are 1, 3, 4 and 5. The last and the best weights, and the rows."""
    with TrainingRecorder(folder, keep=1, every=2) as recorder:
        done, saved = recorder.resume()
        value = saved["weight/a"] if saved else torch.zeros(3)
        for step in range(done + 1, steps + 1):
            value = 1.5 * value + step
            recorder.write(METRICS, {"step": step, "value": value[0].item()})
            if step in (1, 3, 4, 5):
                recorder.save(step, {"weight/a": value}, best=True)
            if step % 2 == 0:
                recorder.save(step, {"weight/a": value})
        best = recorder.tensors_at(5)["weight/a"]
    return [value[0].item(), best[0].item()], (folder / METRICS).read_bytes()


def test_a_training_killed_anywhere_in_a_save_resumes_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "fsync", lambda _file: None)  # no power is cut here
    want, ends = learn(tmp_path / "whole"), 0
    while True:
        folder = tmp_path / str(ends + 1)
        with monkeypatch.context() as patch:
            die_at(patch, ends + 1)
            try:
                assert learn(folder) == want
                break
            except Killed:
                ends += 1
        assert learn(folder) == want, f"it ended in the middle of the {ends}th thing"
    assert ends > 40


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_digest(tmp_path, tiny_model):
    """After SIGKILL twice and SIGTERM once, each in its own process, the end is that of an undisturbed run."""
    version, pairs = version_of(tiny_model), random_pairs(tmp_path / "pairs", rows=96, longest=60)
    scores = run_job(score_job(tmp_path / "scores", version, pairs))
    settings = {"batch_size": 32, "steps": 64, "save_every": 3, "micro_batch_tokens": 2048}
    whole = run_job(train_job(tmp_path / "whole", version, pairs, scores, **settings))
    job = train_job(tmp_path / "killed", version, pairs, scores, **settings)
    scratch, stderr = tmp_path / "killed" / ".train.partial", tmp_path / "log" / "stderr.txt"
    reached = 0
    for stop, status in ((signal.SIGKILL, -9), (signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        process = start_job(job, tmp_path / "log")
        reached = wait_for_progress(process, reached + 4)
        process.send_signal(stop)
        assert process.wait(60) == status
        process.stdout.close()
        step = latest_checkpoint(scratch / CHECKPOINTS)[0]["step"]
        assert step >= reached - 3
        assert not job.output.exists()
    rows = read_rows(scratch / METRICS)
    assert step == rows[-1]["step"] < 64  # SIGTERM saved its very step
    starts = [line for line in stderr.read_text().splitlines() if "items, step" in line]
    assert ["step 0 to 64" in line for line in starts] == [True, False, False]
    assert "stopped on request" in stderr.read_text()
    resumed = run_job(job)
    assert resumed.model == whole.model
    assert resumed.digest == whole.digest
    for name in ("model.safetensors", "config.json"):
        assert digest_file(tmp_path / "killed" / "model" / name) == digest_file(tmp_path / "whole" / "model" / name)
    assert sorted(path.name for path in job.output.iterdir()) == ["log", "manifest.json", METRICS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_at_every_step_changes_nothing(tmp_path, tiny_model, dtype):
    from spin_core.config.model import ModelConfig

    job = random_train_job(tmp_path, tiny_model, ModelConfig(device="cpu", dtype=dtype), epochs=3)
    often = job.model_copy(
        update={
            "output": tmp_path / "often" / "train",
            "weights": tmp_path / "often" / "model",
            "config": job.config.model_copy(update={"save_every": 1}),
        }
    )
    assert run_job(job).model == run_job(often).model


def test_after_a_kill_between_weights_and_metrics_nothing_is_trained_again(tmp_path, tiny_model, monkeypatch):
    job = random_train_job(tmp_path, tiny_model)
    calls = []
    keep = train_phase.summary

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_phase, "summary", killed)
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    assert (job.weights / "manifest.json").exists()
    assert not job.output.exists()
    monkeypatch.setattr(train_phase, "summary", keep)
    monkeypatch.setattr(train_phase, "train", lambda *_: calls.append("trained"))
    record = run_job(job)
    assert calls == []
    assert record.model == json.loads((job.weights / "manifest.json").read_text())["record"]["digest"]
    assert record.steps == 3


def test_weights_whose_metrics_were_lost_are_trained_again_to_the_same_digest(tmp_path, tiny_model):
    import shutil

    job = random_train_job(tmp_path, tiny_model)
    first = run_job(job)
    shutil.rmtree(job.output)
    assert run_job(job) == first
