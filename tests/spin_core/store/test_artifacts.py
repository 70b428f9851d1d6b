"""The store: atomic, honest about what things were built from, and clear when the disk is not."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from full_disk import FULL

from spin_core.errors import DamagedArtifact, LineageBusy, StaleArtifact, StorageError
from spin_core.store import artifacts, lock
from spin_core.store import files as store_files
from spin_core.store.identity import MANIFEST
from spin_core.store.records import ModelVersion, ScoredPairs

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


def python(code: str, *arguments: object, **kwargs) -> subprocess.Popen:
    """A process of its own that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], text=True, stdout=subprocess.PIPE, **kwargs
    )


def test_what_is_published_is_found_again_and_whole(tmp_path):
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
    one = publish(tmp_path / "one", {"a": "1", "b": "2"})
    same = publish(tmp_path / "two", {"b": "2", "a": "1"}, identity(seed=7))
    renamed = publish(tmp_path / "three", {"a": "1", "c": "2"})
    changed = publish(tmp_path / "four", {"a": "1", "b": "3"})
    assert one.digest == same.digest
    assert len({one.digest, renamed.digest, changed.digest}) == 3


def test_timings_are_verified_but_no_part_of_the_digest(tmp_path):
    one = publish(tmp_path / "one", {"a": "1", "log/timing.jsonl": "0.1"})
    two = publish(tmp_path / "two", {"a": "1", "log/timing.jsonl": "0.2"})
    assert one.digest == two.digest
    (tmp_path / "one/log/timing.jsonl").write_text("9")
    assert artifacts.verify(tmp_path / "one") == [f"{tmp_path}/one/log/timing.jsonl: changed since it was published"]


def test_other_work_in_the_same_folder_is_refused_naming_the_field(tmp_path):
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
def test_a_damaged_manifest_says_how_to_mend_it(tmp_path, content):
    publish(tmp_path / "model", {"a": "1"})
    (tmp_path / "model" / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedArtifact, match=r"manifest.json is .*: remove .*/model to build it again"):
        artifacts.read_record(tmp_path / "model", ModelVersion)
    assert len(artifacts.verify(tmp_path / "model")) == 1


def test_a_record_that_cannot_be_read_says_how_to_mend_it(tmp_path):
    publish(tmp_path / "model", {"a": "1"})
    manifest = tmp_path / "model" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "record": {"kind": "from the future"}}))
    with pytest.raises(DamagedArtifact, match="has no readable record: remove"):
        artifacts.read_record(tmp_path / "model", ModelVersion)


def test_a_folder_of_another_kind_is_our_own_bug(tmp_path):
    publish(tmp_path / "model", {"a": "1"})
    with pytest.raises(AssertionError, match="ModelVersion, not a ScoredPairs"):
        artifacts.read_record(tmp_path / "model", ScoredPairs)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    store_files.write_json(path, {"t": 1})
    with pytest.raises(TypeError):
        store_files.write_json(path, {"t": 2, "x": object()})
    assert json.loads(path.read_text()) == {"t": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_reader_never_sees_half_a_json_file(tmp_path):
    path = tmp_path / "record.json"
    store_files.write_json(path, ["x" * 100_000])
    process = python(
        """
        import sys
        from pathlib import Path
        from spin_core.store.files import write_json

        print("ready", flush=True)
        while True:
            write_json(Path(sys.argv[1]), ["y" * 100_000])
        """,
        path,
    )
    assert process.stdout.readline() == "ready\n"
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert len(json.loads(path.read_text())[0]) == 100_000
    process.kill()
    process.communicate(timeout=10)
    assert len(json.loads(path.read_text())[0]) == 100_000


HOLDER = """
    import sys, time
    from pathlib import Path
    from spin_core.store.lock import locked

    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_lineage_in_use_names_its_holder_and_is_free_after_kill_9(tmp_path):
    folder = tmp_path / "tale"
    holder = python(HOLDER, folder)
    assert holder.stdout.readline() == "held\n"
    busy = f"lineage tale is in use by process {holder.pid} on {os.uname().nodename}: wait for it to end"
    with pytest.raises(LineageBusy, match=busy), lock.locked(folder):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    with lock.locked(folder):
        pass


def test_who_waits_for_a_lock_gets_it_when_the_holder_ends(tmp_path):
    holder = python(HOLDER.replace("60", "0.3"), tmp_path)
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    with lock.locked(tmp_path, wait=True):
        assert time.monotonic() - began > 0.1
    holder.communicate(timeout=10)


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock.locked(tmp_path):
        raise KeyError
    with lock.locked(tmp_path):
        pass


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file")
    refused = pytest.raises(StorageError, match=r"a file is in the way: .* choose another folder with --runs")
    with refused, lock.locked(tmp_path / "runs" / "tale"):
        pass


@pytest.mark.parametrize(
    ("runs", "reason"),
    [("/proc/spin-runs", "No such file or directory"), ("{tmp_path}/" + "x" * 300, "File name too long")],
)
def test_a_folder_that_cannot_be_created_is_one_line(tmp_path, runs, reason):
    lineage = Path(runs.format(tmp_path=tmp_path)) / "tale"
    with pytest.raises(StorageError) as refused, lock.locked(lineage):
        pass
    line = str(refused.value)
    assert f" cannot be created ({reason}): choose another folder with --runs" in line
    assert "\n" not in line


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), store_files.storage_errors(tmp_path):
        (tmp_path / "none").read_text()
    with pytest.raises(FileNotFoundError):
        store_files.write_text(tmp_path / "none" / "file", "text")


def test_a_damaged_file_says_how_to_go_on_without_loss(tmp_path):
    for name in ("lineage.json", "record.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(DamagedArtifact, match=rf"or remove the folder {tmp_path} to start over$"):
        store_files.load(ModelVersion, tmp_path / "lineage.json")
    with pytest.raises(DamagedArtifact, match=r"remove that file and run the same command again; what is built is reu"):
        store_files.load(ModelVersion, tmp_path / "record.json")


WRITERS = """
    import sys
    from pathlib import Path
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    from safetensors.numpy import save_file
    from spin_core.errors import StorageError
    from spin_core.runtime.phase import workspace
    from spin_core.store.files import storage_errors, write_json
    from spin_core.store.lock import locked

    disk, names = Path(sys.argv[1]), sys.argv[2:]
    numbers = np.random.default_rng(0).random(1_000_000)
    writers = {
        "json": lambda: write_json(disk / "a.json", ["x" * 2_000_000]),
        "parquet": lambda: pq.write_table(pa.table({"a": numbers}), disk / "a.parquet"),
        "safetensors": lambda: save_file({"a": numbers}, disk / "a.safetensors"),
        "text": lambda: (disk / "a.txt").write_text("x" * 2_000_000),
        "lock": lambda: locked(disk / "tale").__enter__(),
        "workspace": lambda: workspace(disk / "tale" / "model", {}),
    }
    for name in names:
        try:
            with storage_errors(disk):
                writers[name]()
        except StorageError as error:
            print(f"{name}: {error}")
        for path in disk.glob("a.*"):
            path.unlink()
    assert not list(disk.glob(".a*")), "nothing half-written is left"
"""


def said_on_a_small_disk(*names: str, full: bool = False, read_only: bool = False) -> list[str]:
    """The errors of some of `WRITERS` on a disk of 1 MB, which is mounted at /mnt for them alone."""
    script = "mount -t tmpfs -o size=1m tmpfs /mnt"
    script += " && head -c 900000 /dev/zero > /mnt/ballast" if full else ""
    script += " && mount -o remount,ro /mnt" if read_only else ""
    script += ' && exec "$@"'
    own_mounts = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    process = subprocess.run(
        [*own_mounts, script, "sh", sys.executable, "-c", textwrap.dedent(WRITERS), "/mnt", *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "unshare:" in process.stderr or "mount:" in process.stderr:
        pytest.skip(f"no disk can be mounted here: {process.stderr.strip()}")
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_a_full_disk_is_one_line_whoever_was_writing():
    names = ("json", "parquet", "safetensors", "text")
    said = said_on_a_small_disk(*names)
    assert said == [f"{name}: the disk that holds /mnt {FULL}; what is finished is kept" for name in names]


def test_a_phase_does_not_begin_on_a_full_disk():
    assert said_on_a_small_disk("workspace", full=True) == [f"workspace: the disk that holds /mnt/tale {FULL}"]


def test_a_read_only_folder_is_one_line_whoever_was_writing():
    names = ("json", "parquet", "safetensors", "text", "lock", "workspace")
    said = said_on_a_small_disk(*names, read_only=True)
    assert [line.split(":")[0] for line in said] == list(names)
    assert all("cannot be written: make it writable, or choose another folder with --runs" in line for line in said)
