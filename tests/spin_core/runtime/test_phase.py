"""The frame around a phase, seen from outside: exit status, protocol, publication, and what a stop leaves."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spin_core.runtime import launch
from spin_core.runtime import usage as runtime_usage
from spin_core.runtime.phase import workspace
from spin_core.runtime.progress import Progress
from spin_core.runtime.usage import environment
from spin_core.store import artifacts
from spin_core.store.records import ScoredPairs
from tests.support.lineages import toy_phase
from tests.support.lineages.toy_phase import ToyJob

TOY = Path(toy_phase.__file__)


def start(folder: Path, **values) -> subprocess.Popen:
    """The toy phase, started by hand."""
    file = folder / "job.json"
    folder.mkdir(exist_ok=True)
    file.write_text(ToyJob(output=folder / "toy", **values).model_dump_json())
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, TOY, file], text=True, errors="replace", **streams)


def finish(process: subprocess.Popen) -> tuple[int, list[dict], str]:
    """Exit status, messages, log."""
    out, err = process.communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


def counted(folder: Path) -> list[str]:
    return (folder / "toy" / "counted.txt").read_text().split()


def test_a_phase_publishes_its_output_and_reports_progress_and_record(tmp_path):
    status, messages, log = finish(start(tmp_path, seconds=0.3))
    assert status == 0
    *shown, last = messages
    assert [(message["done"], message["total"], message["unit"]) for message in shown] == [
        (1, 3, "item"),
        (2, 3, "item"),
        (3, 3, "item"),
    ]
    assert shown[1]["metrics"] == {"loss": 0.5}
    record = ScoredPairs.model_validate(last["record"])
    assert record == artifacts.read_record(tmp_path / "toy", ScoredPairs)
    assert artifacts.verify(tmp_path / "toy") == []
    assert log == "toy is running\n"


def test_the_manifest_says_what_it_cost_and_what_made_it(tmp_path):
    finish(start(tmp_path))
    usage = artifacts.read_manifest(tmp_path / "toy")["usage"]
    assert 0 <= usage["seconds"] < 30
    assert 5 < usage["peak_memory_mb"] < 10_000
    assert usage["environment"]["python"].startswith("3.")
    assert "device" in usage["environment"]


def test_a_built_artifact_is_reused(tmp_path):
    first = finish(start(tmp_path))
    status, messages, log = finish(start(tmp_path))
    assert (status, messages, log) == (0, first[1][-1:], "")


def test_a_users_error_is_one_line_and_status_2(tmp_path):
    status, messages, log = finish(start(tmp_path, does="wrong"))
    assert status == 2
    assert messages == [{"error": "DataError", "message": "the data are wrong: correct them"}]
    assert log.splitlines()[-1] == "DataError: the data are wrong: correct them"
    assert not (tmp_path / "toy").exists()


def test_a_passing_fault_is_status_75(tmp_path):
    status, messages, _ = finish(start(tmp_path, does="again"))
    assert (status, messages[-1]["error"]) == (75, "TryAgain")


def test_a_bug_keeps_its_traceback(tmp_path):
    status, messages, log = finish(start(tmp_path, does="bug"))
    assert (status, messages) == (1, [])
    assert "Traceback" in log
    assert log.splitlines()[-1] == "ValueError: a bug of our own"


def test_a_disk_that_is_full_in_the_midst_of_a_phase_is_one_line(tmp_path):
    status, messages, _ = finish(start(tmp_path, does="full"))
    assert (status, messages[-1]["error"]) == (2, "StorageError")
    assert "is full: free some space and run the same command again" in messages[-1]["message"]


@pytest.mark.parametrize(("content", "says"), [("{}", "is not a job"), ("{", "is not a job"), (None, "cannot be read")])
def test_a_broken_job_file_is_one_line(tmp_path, content, says):
    file = tmp_path / "job.json"
    if content is not None:
        file.write_text(content)
    process = subprocess.run([sys.executable, TOY, file], capture_output=True, text=True, check=False, timeout=60)
    message = json.loads(process.stdout)["message"]
    assert process.returncode == 2
    assert says in message
    assert "\n" not in message


def test_a_phase_without_a_job_is_an_error():
    process = subprocess.run([sys.executable, TOY], capture_output=True, text=True, check=False, timeout=60)
    assert (process.returncode, "takes one job file" in process.stdout) == (2, True)


def test_a_real_phase_is_started_by_its_module(tmp_path):
    file = tmp_path / "pairs.json"
    file.write_text("{}")
    process = subprocess.run(launch.command(file, "pairs"), capture_output=True, text=True, check=False, timeout=60)
    assert (process.returncode, "is not a job of this phase" in process.stdout) == (2, True)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGKILL", -signal.SIGKILL)])
def test_a_phase_that_was_stopped_continues_to_the_same_digest(tmp_path, name, status):
    finish(start(tmp_path / "whole", items=40))
    process = start(tmp_path / "stopped", items=40, seconds=0.02)
    assert json.loads(process.stdout.readline())["done"] >= 1
    process.send_signal(signal.Signals[name])
    assert finish(process)[0] == status
    assert not (tmp_path / "stopped" / "toy").exists()
    kept = (tmp_path / "stopped" / ".toy.partial" / "counted.txt").read_text().split()
    assert 0 < len(kept) < 40
    ended, messages, _ = finish(start(tmp_path / "stopped", items=40, seconds=0.02))
    assert ended == 0
    assert messages[0]["done"] == len(kept) + 1
    assert counted(tmp_path / "stopped") == counted(tmp_path / "whole") == [str(i) for i in range(40)]


def test_sigterm_stops_a_run_with_a_message_how_to_continue(tmp_path):
    process = start(tmp_path, items=1000, seconds=0.01)
    process.stdout.readline()
    process.terminate()
    status, messages, _ = finish(process)
    assert (status, messages[-1]["error"]) == (143, "Stopped")
    assert messages[-1]["message"] == "stopped on request; the same command continues from here"


def test_unfinished_work_of_another_job_is_dropped(tmp_path):
    process = start(tmp_path, items=1000, seconds=0.01)
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=30)
    finish(start(tmp_path, items=5, seed=100))
    assert counted(tmp_path) == ["100", "101", "102", "103", "104"]


def test_a_kill_at_any_moment_of_a_start_keeps_unfinished_work(tmp_path, monkeypatch):
    """Each change of the disk at a start is the last one before a kill, once."""

    class Killed(BaseException):
        pass

    def started(kill_at: int) -> bool:
        count = itertools.count(1)

        def may_die(call):
            def counted(*args, **kwargs):
                if next(count) == kill_at:
                    raise Killed
                return call(*args, **kwargs)

            return counted

        with monkeypatch.context() as patch:
            for name in ("mkdir", "write_text", "open", "replace", "unlink"):
                patch.setattr(Path, name, may_die(getattr(Path, name)))
            try:
                workspace(tmp_path / "toy", {"seed": 1})
            except Killed:
                return False
            return True

    (workspace(tmp_path / "toy", {"seed": 1}) / "old").touch()
    stamp = tmp_path / ".toy.identity"
    written = stamp.stat()
    kills = 0
    while not started(kills + 1):
        kills += 1
        assert (workspace(tmp_path / "toy", {"seed": 1}) / "old").exists()
    assert kills > 0
    assert (stamp.stat().st_ino, stamp.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_workspace_without_its_stamp_is_not_trusted(tmp_path):
    identity = {"phase": "toy"}
    scratch = workspace(tmp_path / "toy", identity)
    (scratch / "old").write_text("x")
    assert (workspace(tmp_path / "toy", identity) / "old").exists()
    (tmp_path / ".toy.identity").unlink()
    assert not (workspace(tmp_path / "toy", identity) / "old").exists()


def test_noise_of_libraries_cannot_break_the_protocol(tmp_path):
    status, messages, log = finish(start(tmp_path, does="noisy"))
    assert status == 0
    assert [sorted(message) for message in messages] == [["done", "metrics", "total", "unit"]] * 2 + [["record"]]
    assert "from a child" in log
    assert '{"record": "printed"}' in log


def test_a_phase_whose_parent_is_gone_does_not_begin(tmp_path):
    file = tmp_path / "job.json"
    file.write_text(ToyJob(output=tmp_path / "toy").model_dump_json())
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment = {**os.environ, "SPIN_PARENT": str(gone.pid)}
    process = subprocess.run([sys.executable, TOY, file], env=environment, capture_output=True, check=False, timeout=60)
    assert (process.returncode, process.stdout) == (1, b"")
    assert not (tmp_path / "toy").exists()


def test_progress_is_sent_at_most_four_times_a_second_and_at_the_end(capsys):
    progress = Progress()
    progress.start(1000, "row")
    began = time.monotonic()
    for done in range(1, 1001):
        progress.report(done, loss=0.5)
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert shown[0]["done"] == 1
    assert shown[-1] == {"done": 1000, "total": 1000, "unit": "row", "metrics": {"loss": 0.5}}
    assert len(shown) <= 2 + 4 * (time.monotonic() - began) + 1


def test_the_environment_names_the_packages_that_were_loaded():
    described = environment()
    assert {"python", "device"} <= described.keys()
    assert ("torch" in described) == ("torch" in sys.modules)


def test_a_finished_output_can_be_moved(tmp_path):
    finish(start(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    record = artifacts.read_record(tmp_path / "there" / "toy", ScoredPairs)
    assert record.path == tmp_path / "there" / "toy"


def test_on_a_gpu_memory_is_what_is_allocated_there(monkeypatch):
    assert runtime_usage.peak_memory_mb() > 10, "what is resident"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert runtime_usage.peak_memory_mb() == 3
