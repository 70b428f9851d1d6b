"""How a team's worker ends, with a stand-in for Prefect's worker that treats runs as that does. No server."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.server import local, state
from infra import worker
from spin_core.runtime import grace
from spin_core.runtime.process import children_of
from tests.support.servers.stack import ROOT, compose, documented, wait_for

RUN = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(600)
"""
SUPERVISED = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: None)
sys.exit(subprocess.call([sys.executable, "-c", {RUN!r}, sys.argv[1]]))
"""
"""A process of Prefect's which leaves signals to the run below it."""
STAND_IN = f"""# STAND_IN
import pathlib, signal, subprocess, sys, time
code = {{"run": {RUN!r}, "supervised": {SUPERVISED!r}}}[sys.argv[2]]
run = subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], start_new_session=True)
def end(*_):
    run.kill()
    pathlib.Path(sys.argv[1], "worker").write_text(str(run.wait()))
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
while True:
    time.sleep(0.1)
"""
TENDED = "import sys; from infra import worker; sys.exit(worker.run_worker([sys.executable, *sys.argv[1:]]))"


def begin(folder: Path, kind: str = "run") -> "subprocess.Popen[bytes]":
    """A worker with a run that has begun."""
    words = [sys.executable, "-c", TENDED, "-c", STAND_IN, str(folder), kind]
    process = subprocess.Popen(words, cwd=ROOT)
    wait_for((folder / "begun").exists)
    return process


@pytest.mark.parametrize("kind", ["run", "supervised"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_gets_sigterm_lets_its_runs_save_first(number, kind, tmp_path):
    with begin(tmp_path, kind) as process:
        os.kill(process.pid, number)  # as Docker does: that one process, and no other
        assert process.wait(60) == 3, "it ends as Prefect's does"
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "worker").read_text() == "0", "when it was asked, its run had ended by itself"


def test_a_worker_ends_when_its_supervisor_is_killed(tmp_path):
    with begin(tmp_path) as process:
        (pid,) = [child for child in children_of(process.pid) if b"STAND_IN" in command_of(child)]
        (run,) = children_of(pid)
        process.kill()
    wait_for(lambda: not command_of(pid))
    os.kill(run, signal.SIGKILL)  # it is in its own session, which the guard does not end


def test_runs_have_time_to_end_before_docker_kills_them():
    for name in ("worker", "worker-cpu"):
        service = compose(
            documented() | {"SPIN_AUTH": "a:b", "SPIN_DATABASE_PASSWORD": "c", "SPIN_REDIS_PASSWORD": "d"}
        )["services"][name]
        assert service["command"][:3] == ["python", "-m", "infra.worker"]
        assert (
            float(service["stop_grace_period"].removesuffix("s")) > grace.LONGEST_GRACE_SECONDS + worker.REPORT_SECONDS
        )


def command_of(pid: int) -> bytes:
    """A process's command line; empty once it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("http://127.0.0.1:4200/api", "spin:theirs")),
        ({"PREFECT_API_URL": "http://127.0.0.1:4200/api"}, ("http://127.0.0.1:4200/api", "spin:theirs")),
        ({"PREFECT_API_URL": "http://team/api", "PREFECT_API_AUTH_STRING": "a:b"}, ("http://team/api", "a:b")),
    ],
    ids=["nothing named", "the same named", "another named"],
)
def test_a_worker_finds_the_server_of_its_runs_folder_and_the_password(environment, expected, monkeypatch, tmp_path):
    state.prepare_state(tmp_path / ".prefect")
    state.password_file(tmp_path / ".prefect").write_text("spin:theirs\n")
    kept = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    monkeypatch.setattr(os, "environ", kept | {"SPIN_RUNS": str(tmp_path)} | environment)
    monkeypatch.setattr(local, "serving", lambda _runs: "http://127.0.0.1:4200")
    monkeypatch.setattr(local.api, "is_reachable", lambda _address: True)
    worker.find_server()
    assert (os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"]) == expected
