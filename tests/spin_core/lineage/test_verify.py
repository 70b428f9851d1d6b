"""Whether a lineage on disk is whole."""

import shutil

import pytest

from spin_core.lineage.find import find_lineage
from spin_core.lineage.verify import verify


def test_a_whole_lineage_verifies(built):
    problems, folders = verify(built)
    assert problems == []
    assert folders == 1 + 2 * 6 + 1 + 1, "prompts; two iterations; θ_0's evaluation; θ_0 itself"


@pytest.mark.parametrize(
    "name",
    [
        "tale/iter_01/model/model.safetensors",
        "tale/iter_00/prompts/train.parquet",
        "tale/iter_01/train/log/timing.jsonl",
        "tale/base/eval/self-play/items.parquet",
    ],
)
def test_a_flipped_byte_is_found_in_every_file(lineage, name):
    path = lineage.runs / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    problems, _ = verify(lineage)
    assert problems == [f"{path}: changed since it was published"]


def test_a_flipped_byte_in_a_shared_model_is_found(lineage):
    path = lineage.records()[0].opponent.path / "model.safetensors"
    assert path.is_relative_to(lineage.runs / ".sft")
    path.write_bytes(b"zerO")
    assert verify(lineage)[0] == [f"{path}: changed since it was published"]


def test_a_missing_or_replaced_folder_is_found(lineage):
    pairs = lineage.iteration(1) / "pairs"
    shutil.rmtree(pairs)
    assert verify(lineage)[0] == [f"{pairs}: nothing is published here"]
    shutil.copytree(lineage.iteration(0) / "pairs", pairs)
    assert verify(lineage)[0] == [f"{pairs}: not what the record of iteration 1 names"]


def test_a_damaged_manifest_does_not_hide_other_damage(lineage):
    (lineage.iteration(0) / "pairs" / "manifest.json").write_text("{")
    (lineage.iteration(1) / "model" / "model.safetensors").write_bytes(b"other")
    problems, _ = verify(lineage)
    assert len(problems) == 2
    assert "manifest.json cannot be read" in problems[0]
    assert problems[1].endswith("model.safetensors: changed since it was published")


def test_partly_published_folders_are_not_part_of_a_lineage(lineage):
    shutil.copytree(lineage.eval_folder(1) / "self-play", lineage.eval_folder(1) / ".self-play.partial")
    shutil.copytree(lineage.iteration(0) / "train", lineage.iteration(0) / ".train.partial")
    assert len(lineage.reports(1)) == 1
    assert not any(folder.name.startswith(".") for folder in lineage.published())
    assert verify(lineage)[0] == []


def test_a_moved_runs_folder_is_complete_at_its_new_path(lineage, tmp_path):
    before = lineage.records()[1]
    shutil.move(lineage.runs, tmp_path / "moved")
    moved = find_lineage(tmp_path / "moved", "tale")
    assert verify(moved) == ([], 15)
    record = moved.records()[1]
    assert record.pairs.path == tmp_path / "moved" / "tale" / "iter_01" / "pairs"
    assert record.pairs.digest == before.pairs.digest
    assert moved.records()[0].opponent.path.is_relative_to(tmp_path / "moved" / ".sft")
