"""Checkpoints: what is saved, read, kept and restored."""

import pytest
import torch

from spin_core.errors import DamagedArtifact
from spin_core.store.training_log import METRICS, TIMING, read_rows
from spin_core.training.checkpoint import (
    CHECKPOINTS,
    TrainingRecorder,
    checkpoints,
    latest_checkpoint,
    save_checkpoint,
    step_of,
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


def test_an_incomplete_checkpoint_is_ignored(tmp_path):
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
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        for step in (5, 10):
            recorder.save(step, tensors(step))
    damaged = tmp_path / CHECKPOINTS / "step-00000010" / "state-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        assert recorder.resume()[0] == 5
        recorder.save(7, tensors(7))
        assert [step_of(path) for path in checkpoints(tmp_path / CHECKPOINTS)] == [5, 7]
        assert recorder.tensors_at(5)["step/a"] == 5


def test_damaged_or_missing_weights_to_publish_are_reported_with_the_fix(tmp_path):
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        recorder.save(5, tensors(5), best=True)
        (tmp_path / CHECKPOINTS / "best-00000005" / "state-00000.safetensors").write_bytes(b"half")
        for step in (5, 6):
            with pytest.raises(DamagedArtifact, match=rf"weights of step {step} .* remove .* and run again"):
                recorder.tensors_at(step)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        for step in (5, 10, 15):
            recorder.save(step, tensors(step))
    assert [path.name for path in checkpoints(tmp_path / CHECKPOINTS)] == ["step-00000010", "step-00000015"]


def test_resuming_cuts_the_metrics_at_the_checkpoint(tmp_path):
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        assert recorder.resume() == (0, {})
        for step in (1, 2):
            recorder.write(METRICS, {"step": step})
            recorder.write(TIMING, {"step": step})
        recorder.save(2, tensors(2))
        recorder.write(METRICS, {"step": 3})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == [1, 2, 3]
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        assert recorder.resume()[0] == 2
        recorder.write(METRICS, {"step": 3})
    assert (tmp_path / METRICS).read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert [row["step"] for row in read_rows(tmp_path / TIMING)] == [1, 2]


def test_without_a_checkpoint_the_metrics_start_empty(tmp_path):
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        recorder.write(METRICS, {"step": 1})
    with TrainingRecorder(tmp_path, keep=2) as recorder:
        assert recorder.resume() == (0, {})
    assert read_rows(tmp_path / METRICS) == []


def test_the_random_state_is_restored(tmp_path):
    torch.manual_seed(3)
    with TrainingRecorder(tmp_path, keep=1) as recorder:
        recorder.save(1, tensors(1))
        want = torch.rand(4)
        recorder.resume()
    assert torch.equal(torch.rand(4), want)
