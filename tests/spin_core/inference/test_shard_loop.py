"""The loop of a worker: waiting for others, the end of a run, a full disk."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from spin_core.inference.shard_loop import make_shards
from tests.support.processes.claimers import shards_in
from tests.support.processes.full_disk import FULL


def test_a_worker_waits_for_shards_of_others_and_makes_those_that_they_drop(tmp_path):
    own, others = shards_in(tmp_path), shards_in(tmp_path)
    held, dropped = others.claim([0]), others.claim([1])
    done = []

    def finish():
        others.publish(0, lambda path: path.write_text("made by another"))
        for claim in (held, dropped):
            claim.path.unlink()

    threading.Timer(0.5, finish).start()
    make_shards(own, lambda claim: (done.append(claim.number), own.publish(claim.number, Path.touch)))
    assert done == [2, 1]
    assert own.path(0).read_text() == "made by another"


def test_a_worker_ends_when_the_run_has_published_and_removed_its_folder(tmp_path):
    shards = shards_in(tmp_path)

    def published_meanwhile(claim):
        for name in ("work", "final"):
            (tmp_path / name).rename(tmp_path / f"gone-{name}")
        shards.publish(claim.number, Path.touch)

    make_shards(shards, published_meanwhile)
    assert not shards.folder.exists()


SMALL_DISK = """
import sys
from pathlib import Path
from spin_core.errors import StorageError
from spin_core.inference.shard_loop import make_shards
from spin_core.inference.shards import Shards
from spin_core.store.files import storage_errors

disk = Path("/mnt")
for name in ("final", "work"):
    (disk / name).mkdir()
shards = Shards(disk / "final", disk / "work", 4)

def run():
    with storage_errors(disk):
        make_shards(shards, lambda claim: shards.publish(claim.number, lambda path: path.write_bytes(b"x" * 150_000)))

(disk / "ballast").write_bytes(b"0" * 600_000)
try:
    run()
except StorageError as error:
    print(error)
print(sorted(path.name for path in shards.final.iterdir()), list(shards.folder.iterdir()))
(disk / "ballast").unlink()
run()
print({path.stat().st_size for path in shards.final.iterdir()}, shards.missing())
"""


def test_a_disk_that_fills_during_a_shard_costs_only_that_shard():
    script = "mount -t tmpfs -o size=1m tmpfs /mnt && exec " + '"$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", sys.executable, "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(SMALL_DISK)], capture_output=True, text=True, check=False, timeout=120
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"the disk that holds /mnt {FULL}; what is finished is kept",
        "['shard-00000.parquet', 'shard-00001.parquet'] []",
        "{150000} []",
    ]
