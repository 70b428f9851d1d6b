"""Checkpoints, and trainings that were killed."""

import itertools
import json
import re
import signal

import pytest
import torch

from spin_core.errors import DamagedArtifact, Stopped
from spin_core.phases import train as train_phase
from spin_core.runtime.progress import Progress
from spin_core.store.identity import digest_file
from spin_core.store.training_log import METRICS, TIMING, read_rows
from spin_core.training import checkpoint
from spin_core.training.checkpoint import CHECKPOINTS, Journal, checkpoints, latest_checkpoint, save_checkpoint, step_of
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


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight/a": torch.full((3,), value), "step/a": torch.tensor(value)}


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    save_checkpoint(tmp_path / "step-00000005", tensors(1.5), {"step": 5, METRICS: 70})
    state, read = latest_checkpoint(tmp_path)
    assert state == {"step": 5, METRICS: 70, "ranks": 1, "checksums": state["checksums"]}
    assert {name: value.tolist() for name, value in read.items()} == {"weight/a": [1.5] * 3, "step/a": 1.5}


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None


def test_half_a_checkpoint_is_invisible(tmp_path):
    save_checkpoint(tmp_path / "step-00000005", tensors(1), {"step": 5})
    half = tmp_path / ".partial"
    half.mkdir()
    (half / "state-00000.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path)[0]["step"] == 5
    save_checkpoint(tmp_path / "step-00000010", tensors(2), {"step": 10})
    assert latest_checkpoint(tmp_path)[0]["step"] == 10


@pytest.mark.parametrize("name", ["state-00000.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(tmp_path, caplog, name):
    for step in (5, 10):
        save_checkpoint(tmp_path / f"step-{step:08d}", tensors(step), {"step": step})
    damaged = tmp_path / "step-00000010" / name
    damaged.write_bytes(damaged.read_bytes()[:-9])
    state, read = latest_checkpoint(tmp_path)
    assert state["step"] == 5
    assert read["step/a"] == 5
    assert "going back to the one before it" in caplog.text


def test_a_damaged_checkpoint_is_removed_on_resuming(tmp_path):
    with Journal(tmp_path, keep=2) as journal:
        for step in (5, 10):
            journal.save(step, tensors(step))
    damaged = tmp_path / CHECKPOINTS / "step-00000010" / "state-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with Journal(tmp_path, keep=2) as journal:
        assert journal.resume()[0] == 5
        journal.save(7, tensors(7))
        assert [step_of(path) for path in checkpoints(tmp_path / CHECKPOINTS)] == [5, 7]
        assert journal.tensors_at(5)["step/a"] == 5


def test_damaged_or_missing_weights_to_publish_are_reported_with_the_fix(tmp_path):
    with Journal(tmp_path, keep=2) as journal:
        journal.save(5, tensors(5), best=True)
        (tmp_path / CHECKPOINTS / "best-00000005" / "state-00000.safetensors").write_bytes(b"half")
        for step in (5, 6):
            with pytest.raises(DamagedArtifact, match=rf"weights of step {step} .* remove .* and run again"):
                journal.tensors_at(step)


def flip_bit(path, position: int, bit: int = 0) -> None:
    """Change one bit of a file, as a failing disk does."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def replace(path, old: str, new: str) -> None:
    """Replace a text in a file, once."""
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def written_training(folder):
    """A training's folder with checkpoints of the steps 2 and 4, and their folder."""
    with Journal(folder, keep=2) as journal:
        for step in (1, 2, 3, 4):
            for name in (METRICS, TIMING):
                journal.write(name, {"step": step})
            if step % 2 == 0:
                journal.save(step, tensors(step))
    return folder / CHECKPOINTS


def resumed_step(folder) -> int:
    """The step that a training resumes at; its files of metrics have just the rows up to it."""
    with Journal(folder, keep=2) as journal:
        step, read = journal.resume()
    assert not read or read["step/a"] == step
    for name in (METRICS, TIMING):
        assert [row["step"] for row in read_rows(folder / name)] == list(range(1, step + 1))
    return step


STATE, SHARE = "state.json", "state-00000.safetensors"

DAMAGE_OF_THE_LAST = {
    "a bit of a weight": lambda path: flip_bit(path / SHARE, -1),
    "a bit of the header": lambda path: flip_bit(path / SHARE, 12),
    "a tail of zeros": lambda path: (path / SHARE).write_bytes((path / SHARE).read_bytes()[:-3000] + bytes(3000)),
    "a tail of NaN": lambda path: (path / SHARE).write_bytes((path / SHARE).read_bytes()[:-3000] + b"\xff" * 3000),
    "a share that is a folder": lambda path: [(path / SHARE).unlink(), (path / SHARE).mkdir()],
    "an empty object": lambda path: (path / STATE).write_text("{}"),
    "a list": lambda path: (path / STATE).write_text("[4]"),
    "no text": lambda path: (path / STATE).write_bytes(b"\xff\x00\xfe"),
    "deep nesting": lambda path: (path / STATE).write_text("[" * 100_000),
    "another step": lambda path: replace(path / STATE, '"step": 4', '"step": 5'),
    "another length": lambda path: replace(path / STATE, "5", "4"),
    "no checksums": lambda path: replace(path / STATE, '"checksums"', '"check"'),
    "an empty folder": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE_OF_THE_LAST.values(), ids=DAMAGE_OF_THE_LAST)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(tmp_path, caplog, damage):
    damage(written_training(tmp_path) / "step-00000004")
    assert resumed_step(tmp_path) == 2
    (warning,) = caplog.messages
    assert re.search("step-00000004 cannot be used.*going back to the one before it", warning)


def test_every_single_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    checkpoint_folder = written_training(tmp_path) / "step-00000004"
    for name in (STATE, SHARE):
        content = (checkpoint_folder / name).read_bytes()
        for position in range(0, len(content), 7):
            flip_bit(checkpoint_folder / name, position, position % 8)
            assert latest_checkpoint(tmp_path / CHECKPOINTS)[0]["step"] == 2, (name, position)
            (checkpoint_folder / name).write_bytes(content)
    assert latest_checkpoint(tmp_path / CHECKPOINTS)[0]["step"] == 4


LENGTH_AT_2 = 2 * len('{"step": 1}\n')

DAMAGE_OF_METRICS = {
    "missing": (lambda path: path.unlink(), 0),
    "shorter than all checkpoints": (lambda path: path.write_bytes(path.read_bytes()[:5]), 0),
    "shorter than the last checkpoint": (lambda path: path.write_bytes(path.read_bytes()[:-3]), 2),
    "garbage": (lambda path: path.write_bytes(b"\xff" * 500), 0),
    "a bit behind the first checkpoint": (lambda path: flip_bit(path, LENGTH_AT_2 + 3), 2),
    "a bit of the first row": (lambda path: flip_bit(path, 3), 0),
}


@pytest.mark.parametrize("name", [METRICS, TIMING])
@pytest.mark.parametrize(("damage", "step"), DAMAGE_OF_METRICS.values(), ids=DAMAGE_OF_METRICS)
def test_a_checkpoint_whose_metrics_are_damaged_is_not_used(tmp_path, caplog, name, damage, step):
    written_training(tmp_path)
    damage(tmp_path / name)
    assert resumed_step(tmp_path) == step
    assert "going back to the one before it" in caplog.text
    assert ("the training starts over" in caplog.text) == (step == 0)


def test_files_with_strange_names_among_checkpoints_are_ignored(tmp_path, caplog):
    folder = written_training(tmp_path)
    for name in ("step-abc", "step-00000009.old", "step-", "best-x"):
        (folder / name).mkdir()
    (folder / "step-00000010").write_text("a file")
    assert resumed_step(tmp_path) == 4
    assert not caplog.messages


def test_a_checkpoint_of_an_earlier_version_without_checksums_is_read(tmp_path):
    state = written_training(tmp_path) / "step-00000004" / STATE
    values = json.loads(state.read_text())
    state.write_text(json.dumps({name: values[name] for name in ("step", METRICS, TIMING, "ranks")}))
    assert resumed_step(tmp_path) == 4


def test_damaged_weights_are_not_published(tmp_path):
    with Journal(tmp_path, keep=2) as journal:
        journal.save(5, tensors(5), best=True)
        flip_bit(tmp_path / CHECKPOINTS / "best-00000005" / SHARE, -1)
        with pytest.raises(DamagedArtifact, match="weights of step 5"):
            journal.tensors_at(5)


class _StopsAfter(Progress):
    """Progress of a training that is asked to stop in a step."""

    def __init__(self, step: int) -> None:
        super().__init__(quiet=True)
        self.last, self.done = step, 0

    @property
    def stopping(self) -> bool:
        return self.done + 1 >= self.last

    def show(self, done: int, **_metrics: float) -> None:
        self.done = done


DAMAGE_OF_A_TRAINING = {
    "a bit of the last weights": lambda scratch: flip_bit(scratch / CHECKPOINTS / "step-00000002" / SHARE, -1),
    "all checkpoints": lambda scratch: [flip_bit(path / SHARE, -1) for path in checkpoints(scratch / CHECKPOINTS)],
    "garbage in the metrics": lambda scratch: (scratch / METRICS).write_bytes(b"{\n" * 400),
    "the identity is gone": lambda scratch: scratch.with_name(".train.identity").unlink(),
    "the identity is garbage": lambda scratch: scratch.with_name(".train.identity").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGE_OF_A_TRAINING.values(), ids=DAMAGE_OF_A_TRAINING)
def test_a_damaged_training_still_ends_in_the_digests_of_a_whole_one(tmp_path, tiny_model, caplog, damage):
    job = random_train_job(tmp_path, tiny_model, save_every=1)
    whole = run_job(job)
    stopped = job.model_copy(update={"output": tmp_path / "s" / "train", "weights": tmp_path / "s" / "model"})
    with pytest.raises(Stopped):
        run_job(stopped, _StopsAfter(2))
    caplog.clear()
    damage(tmp_path / "s" / ".train.partial")
    resumed = run_job(stopped)
    assert (resumed.model, resumed.digest) == (whole.model, whole.digest)
    assert re.search("going back to the one before it|is removed: its unfinished work", caplog.text)


def test_only_the_newest_checkpoints_stay(tmp_path):
    with Journal(tmp_path, keep=2) as journal:
        for step in (5, 10, 15):
            journal.save(step, tensors(step))
    assert [path.name for path in checkpoints(tmp_path / CHECKPOINTS)] == ["step-00000010", "step-00000015"]


def test_resuming_cuts_the_metrics_to_what_the_checkpoint_knew(tmp_path):
    with Journal(tmp_path, keep=2) as journal:
        assert journal.resume() == (0, {})
        for step in (1, 2):
            journal.write(METRICS, {"step": step})
            journal.write(TIMING, {"step": step})
        journal.save(2, tensors(2))
        journal.write(METRICS, {"step": 3})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == [1, 2, 3]
    with Journal(tmp_path, keep=2) as journal:
        assert journal.resume()[0] == 2
        journal.write(METRICS, {"step": 3})
    assert (tmp_path / METRICS).read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert [row["step"] for row in read_rows(tmp_path / TIMING)] == [1, 2]


def test_without_a_checkpoint_the_metrics_start_empty(tmp_path):
    with Journal(tmp_path, keep=2) as journal:
        journal.write(METRICS, {"step": 1})
    with Journal(tmp_path, keep=2) as journal:
        assert journal.resume() == (0, {})
    assert read_rows(tmp_path / METRICS) == []


def test_the_random_state_is_restored(tmp_path):
    torch.manual_seed(3)
    with Journal(tmp_path, keep=1) as journal:
        journal.save(1, tensors(1))
        want = torch.rand(4)
        journal.resume()
    assert torch.equal(torch.rand(4), want)


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
    with Journal(folder, keep=1, every=2) as journal:
        done, saved = journal.resume()
        value = saved["weight/a"] if saved else torch.zeros(3)
        for step in range(done + 1, steps + 1):
            value = 1.5 * value + step
            journal.write(METRICS, {"step": step, "value": value[0].item()})
            if step in (1, 3, 4, 5):
                journal.save(step, {"weight/a": value}, best=True)
            if step % 2 == 0:
                journal.save(step, {"weight/a": value})
        best = journal.tensors_at(5)["weight/a"]
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
    """SIGKILL twice, SIGTERM once, each in a process of its own; then the end is that of a run left in peace."""
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


def test_a_kill_between_weights_and_metrics_trains_nothing_again(tmp_path, tiny_model, monkeypatch):
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
