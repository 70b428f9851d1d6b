"""Published folders: atomic, reused only for the same job, and verified."""

import json
import signal
from pathlib import Path

import pytest

from spin_core.errors import DamagedArtifact, StaleArtifact
from spin_core.store import artifacts
from spin_core.store.identity import MANIFEST
from spin_core.store.records import ModelVersion, ScoredPairs
from tests.support.processes.children import python

FIELDS = {"t": 0, "parent": None}


def identity(**values) -> dict:
    """The identity of a job."""
    return {"phase": "base", "version": 1, "seed": 0, **values}


def publish(folder: Path, files: dict[str, str], made_by: dict | None = None) -> ModelVersion:
    scratch = folder.with_name(f".{folder.name}.partial")
    for name, text in files.items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_text(text)
    return artifacts.publish(scratch, folder, made_by or identity(), FIELDS, ModelVersion, usage={"seconds": 1.0})


def test_a_published_artifact_is_found_again_and_complete(tmp_path):
    record = publish(tmp_path / "model", {"a.txt": "a", "below/b.txt": "b"})
    assert artifacts.read_record(tmp_path / "model", ModelVersion) == record
    assert artifacts.reusable(tmp_path / "model", identity(), ModelVersion) == record
    assert artifacts.verify(tmp_path / "model") == []
    assert not (tmp_path / ".model.partial").exists()


def test_nothing_is_found_where_nothing_is_published(tmp_path):
    (tmp_path / "model").mkdir()
    assert artifacts.read_record(tmp_path / "model", ModelVersion) is None
    assert artifacts.reusable(tmp_path / "model", identity(), ModelVersion) is None
    assert artifacts.reusable(tmp_path / "none", identity(), ModelVersion) is None


def test_a_digest_depends_on_names_and_contents_alone(tmp_path):
    first = publish(tmp_path / "one", {"a": "1", "b": "2"})
    same = publish(tmp_path / "two", {"b": "2", "a": "1"}, identity(seed=7))
    renamed = publish(tmp_path / "three", {"a": "1", "c": "2"})
    changed = publish(tmp_path / "four", {"a": "1", "b": "3"})
    assert first.digest == same.digest
    assert len({first.digest, renamed.digest, changed.digest}) == 3


def test_timings_are_verified_but_not_in_the_digest(tmp_path):
    first = publish(tmp_path / "one", {"a": "1", "log/timing.jsonl": "0.1"})
    two = publish(tmp_path / "two", {"a": "1", "log/timing.jsonl": "0.2"})
    assert first.digest == two.digest
    (tmp_path / "one/log/timing.jsonl").write_text("9")
    assert artifacts.verify(tmp_path / "one") == [f"{tmp_path}/one/log/timing.jsonl: changed since it was published"]


def test_another_job_in_the_same_folder_is_rejected_with_the_field_that_differs(tmp_path):
    publish(tmp_path / "model", {"a": "1"}, identity(config={"train": {"beta": 0.1, "epochs": 2}}))
    want = identity(config={"train": {"beta": 0.2, "epochs": 2}})
    with pytest.raises(StaleArtifact, match=r"config\.train\.beta = 0\.1, not 0\.2: choose a new lineage name"):
        artifacts.reusable(tmp_path / "model", want, ModelVersion)
    with pytest.raises(StaleArtifact, match="and 1 more fields differ"):
        artifacts.reusable(tmp_path / "model", {**want, "seed": 4}, ModelVersion)


def test_a_kill_before_the_rename_leaves_nothing_visible_and_the_next_attempt_the_same_digest(tmp_path):
    want = publish(tmp_path / "whole", {"a": "1"})
    process = python(
        """
        import os, signal, sys
        from pathlib import Path
        from spin_core.store.artifacts import publish
        from spin_core.store.records import ModelVersion

        final = Path(sys.argv[1])
        scratch = final.with_name(".model.partial")
        scratch.mkdir()
        (scratch / "a").write_text("1")
        (scratch / ".b.1234").write_text("half a fi")
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        publish(scratch, final, {"phase": "base"}, {"t": 0, "parent": None}, ModelVersion)
        """,
        tmp_path / "model",
    )
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / ".model.partial" / "manifest.json").exists(), "killed where it was meant to be"
    assert not (tmp_path / "model").exists()
    assert artifacts.read_record(tmp_path / "model", ModelVersion) is None
    assert publish(tmp_path / "model", {"a": "1"}).digest == want.digest
    assert artifacts.verify(tmp_path / "model") == []


def test_a_leftover_without_a_manifest_gives_way(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("left by a copy that was broken off")
    publish(tmp_path / "model", {"a": "1"})
    assert [path.name for path in (tmp_path / "model").iterdir() if path.name != MANIFEST] == ["a"]


def test_verify_finds_what_is_missing_changed_and_extra(tmp_path):
    publish(tmp_path / "model", {"a": "1", "b": "2", "c": "3"})
    (tmp_path / "model/a").unlink()
    (tmp_path / "model/b").write_text("X")
    (tmp_path / "model/d").write_text("4")
    assert artifacts.verify(tmp_path / "model") == [
        f"{tmp_path}/model/a: missing",
        f"{tmp_path}/model/b: changed since it was published",
        f"{tmp_path}/model/d: not in the manifest",
    ]
    assert artifacts.verify(tmp_path / "none") == [f"{tmp_path}/none: nothing is published here"]


def test_verify_finds_a_record_that_is_not_of_its_files(tmp_path):
    record = publish(tmp_path / "model", {"a": "1"})
    manifest = tmp_path / "model" / MANIFEST
    manifest.write_text(manifest.read_text().replace(record.digest, "0" * 64))
    assert artifacts.verify(tmp_path / "model") == [f"{manifest}: its record's digest is not that of its files"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xff", b'{"identity": {}}'])
def test_a_damaged_manifest_says_how_to_fix_it(tmp_path, content):
    publish(tmp_path / "model", {"a": "1"})
    (tmp_path / "model" / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedArtifact, match=r"manifest.json .*: remove .*/model to build it again"):
        artifacts.read_record(tmp_path / "model", ModelVersion)
    assert len(artifacts.verify(tmp_path / "model")) == 1


def test_a_record_that_cannot_be_read_says_how_to_fix_it(tmp_path):
    publish(tmp_path / "model", {"a": "1"})
    manifest = tmp_path / "model" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "record": {"kind": "from the future"}}))
    with pytest.raises(DamagedArtifact, match="has no readable record: remove"):
        artifacts.read_record(tmp_path / "model", ModelVersion)


def test_a_folder_of_another_kind_is_a_bug(tmp_path):
    publish(tmp_path / "model", {"a": "1"})
    with pytest.raises(AssertionError, match="ModelVersion, not a ScoredPairs"):
        artifacts.read_record(tmp_path / "model", ScoredPairs)
