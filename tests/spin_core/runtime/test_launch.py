"""Starting phases: what each end becomes, and that nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from spin_core.errors import ConfigError, DataError, PhaseCrashed, StaleArtifact, Stopped, StorageError, TryAgain
from spin_core.runtime import grace, launch, process
from spin_core.runtime import warm as runtime_warm
from spin_core.runtime.launch import run_phase
from spin_core.store import artifacts, files
from spin_core.store.jobs import CHECKPOINT_FACTOR, TrainJob
from spin_core.store.records import ScoredPairs
from tests.support.helpers import ROOT
from tests.support.lineages import toy_phase
from tests.support.lineages.small_jobs import random_train_job
from tests.support.lineages.toy_phase import ToyJob
from tests.support.processes.children import runs, wait_for

TOY = Path(toy_phase.__file__)


@pytest.fixture(autouse=True)
def toy_command(monkeypatch):
    """Phases are the toy's; all else of the launcher is as it is."""
    monkeypatch.setattr(launch, "command", lambda job_file, _phase: [sys.executable, str(TOY), str(job_file)])


def job(folder: Path, **values) -> ToyJob:
    return ToyJob(output=folder / "toy", **values)


def pids(folder: Path) -> list[int]:
    """The processes of a toy with a family: itself and its child."""
    file = folder / "pids"
    wait_for(lambda: file.exists() and file.read_text().endswith("\n"))
    return [int(pid) for pid in file.read_text().split()]


def test_a_phase_that_is_done_gives_its_record_and_its_progress(tmp_path):
    messages, logged = [], []
    record = run_phase(job(tmp_path), ScoredPairs, messages.append, logged.append)
    assert record == artifacts.read_record(tmp_path / "toy", ScoredPairs)
    assert messages[-1] == {"done": 3, "total": 3, "unit": "item", "metrics": {"loss": 1 / 3}}
    assert logged == ["toy is running"]


def test_the_job_file_can_be_run_by_hand(tmp_path):
    toy_job = job(tmp_path, seed=3)
    run_phase(toy_job, ScoredPairs)
    assert ToyJob.model_validate_json((tmp_path / "jobs" / "toy.json").read_text()) == toy_job
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["toy.json"]


def test_a_finished_job_is_found_without_a_process(tmp_path):
    assert launch.finished_record(job(tmp_path), ScoredPairs) is None
    record = run_phase(job(tmp_path), ScoredPairs)
    assert launch.finished_record(job(tmp_path), ScoredPairs) == record
    with pytest.raises(StaleArtifact, match="seed = 0, not 1"):
        launch.finished_record(job(tmp_path, seed=1), ScoredPairs)


@pytest.mark.parametrize(
    ("does", "kind", "says"),
    [("wrong", DataError, "correct them"), ("again", TryAgain, "port 29500"), ("full", StorageError, "is full")],
)
def test_a_users_error_comes_through_unchanged(tmp_path, does, kind, says):
    with pytest.raises(kind, match=says) as caught:
        run_phase(job(tmp_path, does=does), ScoredPairs)
    assert type(caught.value) is kind


def test_the_error_for_a_crash_has_the_end_of_its_log_and_a_command_to_run_it_alone(tmp_path):
    with pytest.raises(PhaseCrashed) as caught:
        run_phase(job(tmp_path, does="bug"), ScoredPairs)
    text = str(caught.value)
    assert text.startswith("phase toy ended with status 1; run it alone with: ")
    assert f"{TOY} {tmp_path}/jobs/toy.json" in text
    assert text.endswith("ValueError: a bug of our own")


def test_a_killed_phase_may_have_been_out_of_memory(tmp_path):
    with pytest.raises(PhaseCrashed, match=r"phase toy was killed by SIGKILL \(out of memory\?\)"):
        run_phase(job(tmp_path, does="killed"), ScoredPairs)


def test_the_error_for_a_training_without_memory_names_settings_that_need_less(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyJob, "less_memory", TrainJob.less_memory)
    fix = (
        r"\(out of memory\? lower train\.micro_batch_tokens or set train\.gradient_checkpointing, and the same lineage"
    )
    for does, how in (("killed", "was killed by SIGKILL"), ("starved", "ended with status 1")):
        with pytest.raises(PhaseCrashed, match=f"phase toy {how} {fix}"):
            run_phase(job(tmp_path, does=does), ScoredPairs)


def test_a_phase_that_is_stopped_reports_it(tmp_path):
    def stop(_message):
        os.kill(int((tmp_path / "jobs" / "toy.pid").read_text().split()[0]), signal.SIGTERM)

    with pytest.raises(Stopped, match="continues from here"):
        run_phase(job(tmp_path, items=1000, seconds=0.01), ScoredPairs, stop)
    assert run_phase(job(tmp_path, items=1000, seconds=0.0), ScoredPairs)


def test_a_noisy_library_breaks_nothing(tmp_path):
    messages, logged = [], []
    record = run_phase(job(tmp_path, does="noisy"), ScoredPairs, messages.append, logged.append)
    assert record.pairs == "p"
    assert {message["total"] for message in messages} == {3}
    assert len([line for line in logged if "not text" in line]) == 20_000


@pytest.mark.parametrize("line", ["", "text", "[1, 2]", "3", '{"done": 1', "null"])
def test_other_lines_are_not_messages(line):
    assert launch.parse_message(line) == {}


def test_an_error_of_the_listener_ends_the_phase(tmp_path):
    def fail(_message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_phase(job(tmp_path, does="family", items=1000, seconds=0.02), ScoredPairs, fail)
    wait_for(lambda: not any(runs(pid) for pid in pids(tmp_path)))
    assert (tmp_path / ".toy.partial" / "counted.txt").exists(), "it was asked to stop, and kept its work"


def test_children_of_a_phase_end_with_it(tmp_path):
    run_phase(job(tmp_path, does="family"), ScoredPairs)
    wait_for(lambda: not any(runs(pid) for pid in pids(tmp_path)))


def test_a_training_has_as_long_to_save_as_its_checkpoint_needs_or_as_configured(tmp_path, tiny_model, monkeypatch):
    assert grace.grace_of(job(tmp_path)) == grace.GRACE_SECONDS
    training = random_train_job(tmp_path, tiny_model)
    assert 0 < grace.grace_of(training) - grace.GRACE_SECONDS < 1
    monkeypatch.setattr(grace, "DISK_BYTES_A_SECOND", (tiny_model / "model.safetensors").stat().st_size)
    assert grace.grace_of(training) == grace.GRACE_SECONDS + CHECKPOINT_FACTOR
    monkeypatch.setenv("SPIN_GRACE", "240")
    assert grace.grace_of(training) == grace.grace_of(job(tmp_path)) == 240
    monkeypatch.setenv("SPIN_GRACE", "long")
    with pytest.raises(ConfigError, match="SPIN_GRACE is 'long': give seconds, or unset it"):
        run_phase(job(tmp_path), ScoredPairs)


def test_a_phase_that_is_deaf_to_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(grace, "GRACE_SECONDS", 0.3)

    def fail(_message):
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_phase(job(tmp_path, does="deaf", items=1000, seconds=0.02), ScoredPairs, fail)
    assert time.monotonic() - began < 10


PARENT = """
    import signal
    import sys
    from pathlib import Path
    from spin_core.runtime import launch
    from spin_core.store.records import ScoredPairs
    from tests.support.lineages.toy_phase import ToyJob

    # A shell ignores it for what it starts in the background, the whole test run perhaps.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    toy, folder = sys.argv[1:]
    launch.command = lambda job_file, _phase: [sys.executable, toy, str(job_file)]
    job = ToyJob(output=Path(folder) / "toy", does="family", items=1000, seconds=0.1)
    launch.run_phase(job, ScoredPairs)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_phase_and_its_children_end_with_the_parent_however_that_ends(tmp_path, name):
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), TOY, tmp_path], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    family = pids(tmp_path)
    assert [pid for pid in family if runs(pid)] == family
    parent.send_signal(signal.Signals[name])
    parent.wait(timeout=30)
    wait_for(lambda: not any(runs(pid) for pid in family))


def test_processes_of_a_killed_run_are_ended_before_the_phase_starts_again(tmp_path):
    path = launch.job_path(job(tmp_path))
    path.parent.mkdir(parents=True)
    abandoned = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", str(path)], process_group=0, stdin=subprocess.DEVNULL
    )
    path.with_suffix(".pid").write_text(f"{abandoned.pid} {process.start_time(abandoned.pid)}")
    wait_for(lambda: str(path).encode() in Path(f"/proc/{abandoned.pid}/cmdline").read_bytes())
    run_phase(job(tmp_path), ScoredPairs)
    assert abandoned.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.parametrize("content", ["", "not a number", "999999999 1", None])
def test_a_reused_process_id_is_not_signalled(tmp_path, content):
    path = launch.job_path(job(tmp_path))
    path.parent.mkdir(parents=True)
    path.with_suffix(".pid").write_text(f"{os.getpid()} 1" if content is None else content)
    run_phase(job(tmp_path), ScoredPairs)


def test_phases_of_several_threads_are_independent(tmp_path):
    records = {}

    def run_toy(number: int) -> None:
        records[number] = run_phase(job(tmp_path / str(number), seed=number), ScoredPairs)

    threads = [threading.Thread(target=run_toy, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.digest for record in records.values()}) == 3


def test_a_job_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "jobs").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="a file is in the way"):
        run_phase(job(tmp_path), ScoredPairs)


def test_a_process_is_kept_warm_only_while_phases_follow_one_another():
    warm = runtime_warm.WarmProcess()
    warm.prepare()
    assert warm._process is None
    with warm.enabled():
        warm.prepare()
        waiting = warm._process
        warm.prepare()
        assert warm._process is waiting, "one is enough"
        assert runs(waiting.pid)
    assert not runs(waiting.pid)
    assert warm._process is None


def test_a_warm_process_that_died_is_no_loss(tmp_path):
    warm = runtime_warm.WarmProcess()
    with warm.enabled():
        warm.prepare()
        warm._process.kill()
        warm._process.wait()
        assert warm.take("train", tmp_path / "train.json") is None
        assert warm.take("train", tmp_path / "train.json") is None


def test_a_copied_pid_file_ends_no_process_that_works_on_another_job(tmp_path):
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    (tmp_path / "copy").mkdir()
    original, copy = tmp_path / "toy.json", tmp_path / "copy" / "toy.json"
    with subprocess.Popen([*sleeps, str(original)], process_group=0) as other:
        for file in (original, copy):
            file.with_suffix(".pid").write_text(f"{other.pid} {process.start_time(other.pid)}")
        wait_for(lambda: str(original).encode() in process.command_line(other.pid))
        process.end_leftover(copy)
        assert other.poll() is None
        assert not copy.with_suffix(".pid").exists()
        process.end_leftover(original)
        assert other.wait(30) == -signal.SIGKILL


def test_a_process_that_reads_the_job_as_its_input_is_ended(tmp_path):
    """As one that was started before its job was known. The job's file is written again before the next start."""
    file = tmp_path / "toy.json"
    file.write_text("{}")
    with (
        file.open() as job,
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], stdin=job, process_group=0
        ) as abandoned,
    ):
        file.with_suffix(".pid").write_text(f"{abandoned.pid} {process.start_time(abandoned.pid)}")
        files.write_json(file, {})
        process.end_leftover(file)
        assert abandoned.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("content", ["", "1", "one two", "0 0", "-1 5", "\xff", None])
def test_a_pid_file_that_cannot_be_read_is_removed(tmp_path, content):
    pid_file = tmp_path / "toy.pid"
    if content is None:
        pid_file.mkdir()
    else:
        pid_file.write_text(content, "latin-1")
    process.end_leftover(tmp_path / "toy.json")
    assert not pid_file.exists()
