"""Shards and the workers that share them: claims, races, deaths, damage, a full disk. Workers are real processes."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from claimers import race
from full_disk import FULL
from generation import EOS, do, generate_job, prompt_set

from spin_core.inference import shards
from spin_core.inference.shards import Shards, shard_name, work
from spin_core.inference.tally import Tally, read_counts
from spin_core.phases import join as phases_join
from spin_core.runtime import devices, launch, phase, progress
from spin_core.runtime import process as runtime_process
from spin_core.store import artifacts
from spin_core.store.identity import identity_of


@pytest.fixture
def folder(tmp_path):
    for name in ("final", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


def some_shards(folder: Path, count=3, **settings) -> Shards:
    return Shards(folder / "final", folder / "work", count, **settings)


def test_processes_that_race_get_different_shards_and_one_alone_takes_over_what_the_dead_held(folder):
    for turn in (0, 1):  # those of the first race are dead in the second
        found = race(folder, 40, 3 - turn)
        assert sorted(number for mine in found for number in mine) == list(range(40))
        assert {held for held, _ in some_shards(folder, 40).claims().values()} == {turn}


def test_what_is_claimed_is_refused_until_it_is_let_go(folder):
    ours, theirs = some_shards(folder), some_shards(folder)
    with ours.claim([1, 2]) as claim:
        assert claim.number == 1
        assert theirs.claim([1]) is None
        assert theirs.claim([1, 2]).number == 2
    assert theirs.claim([1]).number == 1


def test_a_number_that_now_belongs_to_another_process_holds_no_claim(folder):
    found = some_shards(folder)
    claim = found.claim([0])
    claim.path.write_text(json.dumps({**json.loads(claim.path.read_text()), "born": "1"}))
    assert found.claim([0]).number == 0


def test_a_claim_from_elsewhere_holds_as_long_as_it_changes(folder):
    found = some_shards(folder, stale=0.4)
    claim = found.claim([0])
    elsewhere = {**json.loads(claim.path.read_text()), "place": "another machine"}
    claim.path.write_text(json.dumps(elsewhere))
    for _ in range(4):
        assert found.claim([0]) is None
        time.sleep(0.15)
        os.utime(claim.path)  # its heart beats
    assert found.claim([0]) is None
    time.sleep(0.5)
    assert found.claim([0]).path != claim.path


def test_a_claim_is_written_again_while_its_shard_is_made(folder, monkeypatch):
    monkeypatch.setattr(shards, "HEARTBEAT_SECONDS", 0.02)
    found = some_shards(folder)
    with found.claim([0]) as claim:
        claim.note(7, 93)
        deadline = time.monotonic() + 20
        while found.holders()[0][1]["items"] == 0:
            assert time.monotonic() < deadline
        [(number, holder)] = found.holders()
    assert (number, holder["items"], holder["tokens"], holder["pid"]) == (0, 7, 93, os.getpid())
    assert list(found.folder.iterdir()) == []


def test_the_first_to_publish_a_shard_is_the_one_whose_shard_stands(folder):
    found = some_shards(folder)
    assert found.publish(0, lambda path: path.write_text("first"))
    assert not found.publish(0, lambda path: path.write_text("second"))
    assert found.path(0).read_text() == "first"
    assert list(found.folder.iterdir()) == []
    assert found.missing() == [1, 2]


def test_who_claims_a_shard_just_as_it_is_published_lets_go(folder):
    found = some_shards(folder)
    found.publish(0, lambda path: path.write_text("done"))
    assert found.claim([0]) is None
    assert found.claims() == {}


def test_a_worker_waits_for_the_shards_of_others_and_does_what_they_leave(folder):
    ours, theirs = some_shards(folder), some_shards(folder)
    held, left = theirs.claim([0]), theirs.claim([1])
    done = []

    def finish():
        theirs.publish(0, lambda path: path.write_text("theirs"))
        for claim in (held, left):
            claim.path.unlink()

    threading.Timer(0.5, finish).start()
    work(ours, lambda claim: (done.append(claim.number), ours.publish(claim.number, Path.touch)))
    assert done == [2, 1]
    assert ours.path(0).read_text() == "theirs"


def test_a_worker_ends_when_the_run_has_published_and_taken_its_folder_away(folder):
    found = some_shards(folder)

    def published_meanwhile(claim):
        for name in ("work", "final"):
            (folder / name).rename(folder / f"gone-{name}")
        found.publish(claim.number, Path.touch)

    work(found, published_meanwhile)
    assert not found.folder.exists()


SMALL_DISK = """
import sys
from pathlib import Path
from spin_core.errors import StorageError
from spin_core.inference.shards import Shards, work
from spin_core.store.files import storage_errors

disk = Path("/mnt")
for name in ("final", "work"):
    (disk / name).mkdir()
shards = Shards(disk / "final", disk / "work", 4)

def go_on():
    with storage_errors(disk):
        work(shards, lambda claim: shards.publish(claim.number, lambda path: path.write_bytes(b"x" * 150_000)))

(disk / "ballast").write_bytes(b"0" * 600_000)
try:
    go_on()
except StorageError as error:
    print(error)
print(sorted(path.name for path in shards.final.iterdir()), list(shards.folder.iterdir()))
(disk / "ballast").unlink()
go_on()
print({path.stat().st_size for path in shards.final.iterdir()}, shards.missing())
"""


def test_a_disk_that_fills_within_a_shard_costs_that_shard_alone():
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


# Whole generations.


def join(job, folder: Path, name: str) -> subprocess.Popen:
    """A worker from elsewhere, once it is ready for the run to begin."""
    path = folder / f"{name}.json"
    path.write_text(job.model_dump_json())
    log = folder / f"{name}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "spin_core.phases.join", str(path)], stdout=subprocess.DEVNULL, stderr=stderr
        )
    until(lambda: "waiting for the run" in log.read_text(), process, log)
    return process


def until(true, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Enough prompts for several workers to be at work at once."""
    return prompt_set(tmp_path_factory.mktemp("many") / "prompts", rows=60, stop_ids=(EOS,))


SETTINGS = {"shard_size": 3, "max_new_tokens": 60}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_model, many):
    """What one worker makes of it."""
    return do(generate_job(tmp_path_factory.mktemp("alone") / "generations", tiny_model, many, **SETTINGS))


def kill_at_work(process: subprocess.Popen, job, log: Path) -> None:
    """Kill a worker while it holds a claim."""
    held = lambda: [who for _, who in claims_of(job).holders() if who["pid"] == process.pid]  # noqa: E731
    until(held, process, log)
    process.kill()
    process.wait()


def claims_of(job) -> Shards:
    return Shards(phase.scratch_of(job.output), shards.work_folder(job), 20)


def test_three_workers_of_which_one_is_killed_make_what_one_makes(tmp_path, tiny_model, many, alone):
    job = generate_job(tmp_path / "generations", tiny_model, many, **SETTINGS)
    helper, victim = (join(job, tmp_path, name) for name in ("helper", "victim"))
    killer = threading.Thread(target=kill_at_work, args=(victim, job, tmp_path / "victim.log"))
    killer.start()
    record = do(job)
    killer.join()
    assert helper.wait(60) == 0
    assert record.digest == alone.digest
    timings = [json.loads(line) for line in (record.path / "log" / "timing.jsonl").read_text().splitlines()]
    assert len(timings) == record.shards == 20
    assert {f"{os.uname().nodename}:{pid}" for pid in (os.getpid(), helper.pid)} <= {one["worker"] for one in timings}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["generations"]
    assert artifacts.verify(record.path) == []


def test_the_phase_starts_workers_of_its_own_and_leaves_none_behind(tmp_path, tiny_model, many, alone):
    job = generate_job(tmp_path / "generations", tiny_model, many, speed={"workers": 2}, **SETTINGS)
    assert job.config.speed.workers == 2
    assert shards.work_folder(job).name == shards.work_folder(without_speed(job)).name
    seen = set()
    heard = []

    def watch(message):
        heard.append(message)
        seen.update(who["pid"] for _, who in claims_of(job).holders())

    record = launch.run_phase(job, type(alone), watch)
    assert record.digest == alone.digest
    assert [pid for pid in seen if runtime_process.birth(pid)] == []
    assert heard[-1]["done"] == heard[-1]["total"] == 60
    assert heard[-1]["metrics"]["answers/s"] > 0
    assert heard[-1]["metrics"]["seconds left"] == 0


def without_speed(job):
    return job.model_copy(update={"config": job.config.model_copy(update={"speed": type(job.config.speed)()})})


def test_a_run_without_a_worker_of_its_own_waits_for_others(tmp_path, tiny_model, many, alone):
    job = generate_job(tmp_path / "generations", tiny_model, many, speed={"workers": 0}, **SETTINGS)
    worker = join(job, tmp_path, "worker")
    record = do(job)
    assert worker.wait(60) == 0
    assert record.digest == alone.digest
    lines = (record.path / "log" / "timing.jsonl").read_text().splitlines()
    assert {json.loads(line)["worker"] for line in lines} == {f"{os.uname().nodename}:{worker.pid}"}


def test_who_joins_what_is_published_has_nothing_to_do(tiny_model, many, alone):
    job = generate_job(alone.path, tiny_model, many, **SETTINGS)
    assert not phases_join.has_begun(job, lambda: None)


def test_damaged_shards_are_made_again(tmp_path, tiny_model, many, alone, caplog):
    job = generate_job(tmp_path / "generations", tiny_model, many, **SETTINGS)
    scratch = phase.workspace(job.output, identity_of(job))
    for number in range(4):
        (scratch / f"{shard_name(number)}.parquet").write_bytes(
            (alone.path / f"{shard_name(number)}.parquet").read_bytes()
        )
    with (scratch / "shard-00001.parquet").open("r+b") as file:
        file.truncate(500)  # as a machine that lost its power leaves it
    (scratch / "shard-00002.parquet").write_bytes((alone.path / "shard-00007.parquet").read_bytes())
    assert do(job).digest == alone.digest
    assert [number for number in range(20) if f"{shard_name(number)}.parquet is damaged" in caplog.text] == [1, 2]


def test_a_model_that_never_stops_is_cut_and_counted_and_said(tmp_path, tiny_model, caplog):
    prompts = prompt_set(tmp_path / "prompts", rows=6, stop_ids=(10_000,))
    record = do(generate_job(tmp_path / "generations", tiny_model, prompts, max_new_tokens=9))
    assert record.finish_reasons == {"length": 6}
    assert record.tokens == 6 * 9
    assert "none of the 6 answers ended by itself" in caplog.text


# What is told meanwhile.


def test_the_rate_is_of_the_whole_set_and_gives_the_time_left(folder, alone, monkeypatch):
    found = some_shards(folder, 20)
    ids = [pq.read_table(alone.path / f"{shard_name(n)}.parquet")["id"].to_pylist() for n in range(20)]
    told = progress.Progress(total=60)
    tally = Tally(found, ids, told)
    tokens = 0
    for number in range(5):  # found done: they are no part of the rate
        found.path(number).write_bytes((alone.path / found.path(number).name).read_bytes())
        tokens += read_counts(found.path(number), ids[number])[1]
    tally.look()
    assert tally.rates(15, tokens) == {}
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    tally.begin()
    clock += 2.0
    assert tally.rates(25, tokens + 400) == {"tokens/s": 200.0, "answers/s": 5.0, "seconds left": 7}


def test_each_worker_gets_devices_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert devices.environments(2, 3) == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in devices.environments(4, 3)] == ["2", "5", "7", "2"]
    assert devices.environments(2, 3, each=2) == [{"CUDA_VISIBLE_DEVICES": "2,5"}] * 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in devices.environments(2, 4, each=2)] == ["0,1", "2,3"]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert devices.environments(2, 0) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
