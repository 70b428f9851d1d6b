"""Damaged checkpoints: each is noticed, and training continues from the one before it."""

import json
import re

import pytest
import torch

from spin_core.errors import DamagedArtifact, Stopped
from spin_core.runtime.progress import Progress
from spin_core.store.training_log import METRICS, TIMING, read_rows
from spin_core.training.checkpoint import CHECKPOINTS, TrainingRecorder, checkpoints, latest_checkpoint
from tests.support.lineages.small_jobs import (
    random_train_job,
    run_job,
)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight/a": torch.full((3,), value), "step/a": torch.tensor(value)}


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
    with TrainingRecorder(folder, keep=2) as recorder:
        for step in (1, 2, 3, 4):
            for name in (METRICS, TIMING):
                recorder.write(name, {"step": step})
            if step % 2 == 0:
                recorder.save(step, tensors(step))
    return folder / CHECKPOINTS


def resumed_step(folder) -> int:
    """The step that a training resumes at; its files of metrics have just the rows up to it."""
    with TrainingRecorder(folder, keep=2) as recorder:
        step, read = recorder.resume()
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
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, damage):
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
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        recorder.save(5, tensors(5), best=True)
        flip_bit(tmp_path / CHECKPOINTS / "best-00000005" / SHARE, -1)
        with pytest.raises(DamagedArtifact, match="weights of step 5"):
            recorder.tensors_at(5)


class _StopsAfter(Progress):
    """Progress of a training that is stopped in a step."""

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
def test_a_damaged_training_ends_with_the_digests_of_an_undamaged_one(tmp_path, tiny_model, caplog, damage):
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
