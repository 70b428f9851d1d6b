"""What a phase reads is what was published: damage is noticed before anything is computed from it."""

import os

import pytest

from spin_core.errors import DamagedArtifact
from spin_core.runtime.phase import execute
from spin_core.runtime.progress import Progress
from spin_core.store import artifacts, inputs
from spin_core.store.inputs import check_inputs
from spin_core.store.jobs import ScoreJob
from spin_core.store.records import ModelVersion, PairDataset, ScoredPairs
from tests.support.lineages.small_jobs import CPU


@pytest.fixture
def job(tmp_path) -> ScoreJob:
    """A job that reads a model and pairs, which are published below `tmp_path`."""
    for name in ("model", "pairs"):
        (tmp_path / f".{name}").mkdir()
        (tmp_path / f".{name}" / "weights").write_bytes(bytes(range(256)) * 64)
    model = artifacts.publish(
        tmp_path / ".model", tmp_path / "model", {"seed": 1}, {"t": 1, "parent": "p"}, ModelVersion
    )
    fields = {"t": 0, "rows_in": 1, "rows": 1, "drops": {}, "mix": {"0": 1}}
    pairs = artifacts.publish(tmp_path / ".pairs", tmp_path / "pairs", {"seed": 1}, fields, PairDataset)
    return ScoreJob(output=tmp_path / "scores", t=1, opponent=model, pairs=pairs, model=CPU, micro_batch_tokens=8)


def flip_bit(path, position: int = 500) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "one bit": (flip_bit, "weights has changed since it was published"),
    "truncated": (lambda path: os.truncate(path, 10), "weights has changed since it was published"),
    "missing": (lambda path: path.unlink(), r"weights cannot be read \(No such file or directory\)"),
    "a folder": (lambda path: [path.unlink(), path.mkdir()], r"weights cannot be read \(Is a directory\)"),
    "another result": (
        lambda path: flip_bit(
            path.with_name("manifest.json"), path.with_name("manifest.json").read_text().index("sha256") + 10
        ),
        "is not what this job was made for",
    ),
}


@pytest.mark.parametrize("is_noted", [False, True], ids=["first", "noted"])
@pytest.mark.parametrize("name", ["model", "pairs"])
@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damage_of_what_a_phase_reads_is_reported_with_the_fix(tmp_path, job, damage, sentence, name, is_noted):
    if is_noted:
        check_inputs(job, tmp_path / "jobs")
    damage(tmp_path / name / "weights")
    with pytest.raises(DamagedArtifact, match=f"/{name}.*{sentence}: restore it .* or remove .*/{name} and run"):
        check_inputs(job, tmp_path / "jobs")


def test_the_fix_of_a_model_names_its_training_too(tmp_path, job):
    (tmp_path / "train").mkdir()
    flip_bit(tmp_path / "model" / "weights")
    with pytest.raises(DamagedArtifact, match=f"remove {tmp_path}/model and {tmp_path}/train and run"):
        check_inputs(job, tmp_path / "jobs")


def test_digests_are_computed_once_and_then_only_for_files_that_were_written(tmp_path, job, monkeypatch):
    digested = []
    real = inputs.digest_file
    monkeypatch.setattr(inputs, "digest_file", lambda path: digested.append(path.parent.name) or real(path))
    check_inputs(job, tmp_path / "jobs")
    assert sorted(digested) == ["model", "pairs"]
    check_inputs(job, tmp_path / "jobs")
    assert len(digested) == 2
    (tmp_path / "pairs" / "weights").touch()
    check_inputs(job, tmp_path / "jobs")
    assert digested[2:] == ["pairs"]
    check_inputs(job, tmp_path / "another iteration")
    assert sorted(digested[3:]) == ["model", "pairs"]
    (tmp_path / "jobs" / "verified.json").write_bytes(b"\xff[")
    check_inputs(job, tmp_path / "jobs")
    assert sorted(digested[5:]) == ["model", "pairs"]


def test_a_phase_fails_on_damaged_inputs_unless_verification_is_off(tmp_path, job, monkeypatch):
    calls = []

    def run(*_):
        calls.append("computed")
        return {"pairs": "p", "opponent": "o"}

    flip_bit(tmp_path / "model" / "weights")
    monkeypatch.delenv(inputs.VERIFY, raising=False)
    with pytest.raises(DamagedArtifact, match="--no-verify"):
        execute(job, ScoredPairs, run, Progress(quiet=True))
    assert not calls
    monkeypatch.setenv(inputs.VERIFY, "0")
    execute(job, ScoredPairs, run, Progress(quiet=True))
    assert calls == ["computed"]
