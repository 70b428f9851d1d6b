"""Small files: written whole, and clear errors when the disk is full or read-only."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from spin_core.errors import DamagedArtifact, StorageError
from spin_core.store import files, lock
from spin_core.store.records import ModelVersion
from tests.support.processes.children import python
from tests.support.processes.full_disk import FULL


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    files.write_json(path, {"t": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"t": 2, "x": object()})
    assert json.loads(path.read_text()) == {"t": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_reader_never_sees_half_a_json_file(tmp_path):
    path = tmp_path / "record.json"
    files.write_json(path, ["x" * 100_000])
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


def test_other_system_errors_are_not_translated(tmp_path):
    with pytest.raises(FileNotFoundError), files.storage_errors(tmp_path):
        (tmp_path / "none").read_text()
    with pytest.raises(FileNotFoundError):
        files.write_text(tmp_path / "none" / "file", "text")


def test_the_error_for_a_damaged_file_says_how_to_continue_without_loss(tmp_path):
    for name in ("lineage.json", "record.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(DamagedArtifact, match=rf"or remove the folder {tmp_path} to start over$"):
        files.load(ModelVersion, tmp_path / "lineage.json")
    with pytest.raises(DamagedArtifact, match=r"remove that file and run the same command again; what is built is reu"):
        files.load(ModelVersion, tmp_path / "record.json")


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


def errors_on_a_small_disk(*names: str, full: bool = False, read_only: bool = False) -> list[str]:
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


def test_a_full_disk_is_one_line_for_every_writer():
    names = ("json", "parquet", "safetensors", "text")
    errors = errors_on_a_small_disk(*names)
    assert errors == [f"{name}: the disk that holds /mnt {FULL}; what is finished is kept" for name in names]


def test_a_phase_does_not_begin_on_a_full_disk():
    assert errors_on_a_small_disk("workspace", full=True) == [f"workspace: the disk that holds /mnt/tale {FULL}"]


def test_a_read_only_folder_is_one_line_for_every_writer():
    names = ("json", "parquet", "safetensors", "text", "lock", "workspace")
    errors = errors_on_a_small_disk(*names, read_only=True)
    assert [line.split(":")[0] for line in errors] == list(names)
    assert all("cannot be written: make it writable, or choose another folder with --runs" in line for line in errors)
