"""Updates of a lineage's copy: what is uploaded, interruptions, and copies that are never overwritten."""

import shutil
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from spin_core.config.push import PushConfig
from spin_core.errors import ConfigError, DamagedArtifact, TryAgain
from spin_core.lineage.find import find_lineage
from spin_core.remote import push as pushes
from spin_core.remote import storage
from spin_core.remote.manifest import MANIFEST, TEXTS, files_of
from spin_core.remote.pull import pull
from spin_core.remote.push import push
from spin_core.remote.storage import Remote
from spin_core.store import artifacts, files, identity
from tests.support.lineages.copies import contents
from tests.support.lineages.small_lineage import build_lineage

KILLED = """
import os, signal, sys
from pathlib import Path
from spin_core.config.push import PushConfig
from spin_core.lineage.find import find_lineage
from spin_core.remote import push
from spin_core.remote.storage import Remote

runs, url, after, real, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Remote.upload, 0

def upload(self, *given, **named):
    global count
    if count == after:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    real(self, *given, **named)

Remote.upload = upload
push.push(find_lineage(runs, "tale"), PushConfig(url=url))
"""
"""Pushes, and kills itself with SIGKILL after so many uploaded files."""


def test_a_second_push_uploads_nothing_and_a_later_one_only_new_files(lineage, store, tmp_path):
    first = push(lineage, store)
    assert push(lineage, store) == pushes.Transfer(first.files, 0, 0)
    files.write_text(lineage.root / "report.html", "<p>and more</p>")
    later = push(lineage, store)
    assert (later.files, later.moved, later.bytes) == (first.files, 1, 15)
    assert (tmp_path / "store/tale/report.html").read_text() == "<p>and more</p>"
    kept = {path.name for path in (tmp_path / "store/tale" / TEXTS).iterdir()}
    assert kept == {file.sha256 for path, file in files_of(lineage).items() if file.at != path}


def test_after_an_interrupted_push_the_earlier_copy_can_still_be_pulled(lineage, store, tmp_path, monkeypatch):
    push(lineage, store)
    before = contents(lineage)
    files.write_text(lineage.root / "report.html", "<p>and more</p>")
    record = lineage.record(1)
    lineage.save_record(record.model_copy(update={"seconds": {}}))

    def killed(*_given) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Remote, "write", killed)  # the manifest, after everything else
    with pytest.raises(KeyboardInterrupt):
        push(lineage, store)
    pull(tmp_path / "elsewhere", "tale", store.url)
    assert contents(find_lineage(tmp_path / "elsewhere", "tale")) == before


def test_damaged_files_are_not_pushed(lineage, store):
    (lineage.iteration(1) / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(DamagedArtifact, match=r"iter_01/model/model.safetensors changed since it was published"):
        push(lineage, store)
    assert storage.connect(f"{store.url}/tale").read_json(MANIFEST) is None


def test_a_push_replaces_neither_another_lineage_nor_folders_that_only_the_copy_has(lineage, store, tmp_path):
    build_lineage(tmp_path / "other", nlls=((3.0, 3.1), (2.0, 2.1)))
    other = find_lineage(tmp_path / "other", "tale")
    push(lineage, store)
    with pytest.raises(ConfigError, match=r"store/tale (has another|also has) .* spin push --replace") as raised:
        push(other, store)
    assert "\n" not in str(raised.value)
    shutil.rmtree(lineage.iteration(1))
    with pytest.raises(ConfigError, match="also has iter_01/"):
        push(lineage, store)
    push(other, store, replace=True)
    pull(tmp_path / "elsewhere", "tale", store.url)
    assert contents(find_lineage(tmp_path / "elsewhere", "tale")) == contents(other)


def test_a_folder_built_again_with_other_timings_belongs_to_the_same_lineage(lineage, store):
    push(lineage, store)
    log = lineage.iteration(0) / "train" / "log" / "timing.jsonl"
    log.write_text("{}\n")
    manifest = artifacts.read_manifest(log.parents[1])
    manifest["files"]["log/timing.jsonl"] = {"sha256": identity.digest_file(log), "bytes": 3}
    files.write_json(log.parents[1] / identity.MANIFEST, manifest)
    assert push(lineage, store).moved == 2


def test_a_new_lineage_is_rejected_if_a_copy_has_its_name(lineage, store, tmp_path):
    pushes.check_copy(lineage.runs, "tale", PushConfig())
    pushes.check_copy(lineage.runs, "tale", store)
    push(lineage, store)
    pushes.check_copy(lineage.runs, "tale", store)
    with pytest.raises(ConfigError, match="bring it here with spin pull tale file://"):
        pushes.check_copy(tmp_path / "elsewhere", "tale", store)
    pushes.check_copy(tmp_path / "elsewhere", "another", store)


def test_s3_a_killed_push_continues_with_missing_files_and_pull_gives_equal_bytes(one_iteration, s3, tmp_path):
    for after in (3, 9):
        command = [sys.executable, "-c", KILLED, str(one_iteration.runs), s3.url, str(after)]
        assert subprocess.run(command, check=False, timeout=100).returncode == -signal.SIGKILL
        assert f"tale/{MANIFEST}" not in s3.versions()
    assert len(s3.versions()) == 3 + 9
    stored = {f"tale/{file.at}" for file in files_of(one_iteration).values()}
    pushed = push(one_iteration, PushConfig(url=s3.url))
    assert pushed.moved == len(stored) - 3 - 9
    now = s3.versions()
    assert {now[path] for path in stored} == {1}, "no file was uploaded twice"
    push(one_iteration, PushConfig(url=s3.url))
    assert s3.versions() == now
    pulled = pull(tmp_path / "elsewhere", "tale", s3.url)
    assert pulled.files == pushed.files
    assert contents(find_lineage(tmp_path / "elsewhere", "tale")) == contents(one_iteration)


def test_s3_a_corrupted_object_is_found_and_repaired(one_iteration, s3, tmp_path):
    push(one_iteration, PushConfig(url=s3.url))
    path = f"models/{s3.folder}/tale/iter_00/model/model.safetensors"
    whole = s3.fs.cat_file(path)
    s3.fs.pipe_file(path, whole[::-1])
    with pytest.raises(DamagedArtifact, match=r"s3://\S+/tale/iter_00/model/model.safetensors does not have"):
        pull(tmp_path / "elsewhere", "tale", s3.url)
    done = CliRunner().invoke(main, ["push", "tale", s3.url, "--again", "--runs", str(one_iteration.runs)])
    assert done.exit_code == 0, done.output
    assert ", 1 of them (0 kB) uploaded now, and read back" in done.output
    assert s3.fs.cat_file(path) == whole


def test_s3_an_upload_that_arrives_changed_is_an_error(one_iteration, s3, monkeypatch):
    real = Remote.upload

    def change(self, source, path, *more) -> None:
        real(self, source, path, *more)
        if path.endswith("iter_00/model/model.safetensors"):
            self.fs.pipe_file(self.at(path), b"something")

    monkeypatch.setattr(Remote, "upload", change)
    with pytest.raises(TryAgain, match="did not arrive as it was sent"):
        push(one_iteration, PushConfig(url=s3.url))
    assert f"tale/{MANIFEST}" not in s3.versions()
