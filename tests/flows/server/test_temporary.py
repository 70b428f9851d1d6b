"""The temporary server of a run: it ends with the run, and what prevents it is one line at once."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from flows.server import temporary
from flows.server.temporary import Server, check_space, database_problem, server_errors, set_aside_damaged_database
from spin_core.errors import DataError, StorageError, TryAgain
from spin_core.runtime import process

STARTS = """
import pathlib, sys, time
from flows.server.temporary import Server

print(Server(pathlib.Path(sys.argv[1])).process.pid, flush=True)
time.sleep(600)
"""
"""A program that starts a server."""


def ends_within(pid: int, seconds: float) -> bool:
    """Whether a process ends in time."""
    deadline = time.monotonic() + seconds
    while process.is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not process.is_running(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_program_that_is_killed_in_its_first_seconds_leaves_no_server(tmp_path, number, seconds):
    with subprocess.Popen([sys.executable, "-c", STARTS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        server = int(program.stdout.readline())
        time.sleep(seconds)
        assert process.is_running(server)
        program.send_signal(number)
        assert program.wait(30) == -number
    assert ends_within(server, 30)


@pytest.mark.parametrize("setting", ["--runs", "PREFECT_HOME"])
def test_a_folder_that_cannot_be_created_names_what_chooses_it(tmp_path, monkeypatch, setting):
    file = tmp_path / "file"
    file.touch()
    state = file if setting == "PREFECT_HOME" else file / ".prefect"
    monkeypatch.setenv("PREFECT_HOME", str(state))
    with pytest.raises(StorageError, match=f"a file is in the way: .* choose another folder with {setting}"):
        Server(state)


@pytest.mark.slow
def test_it_is_ready_and_ends(tmp_path):
    server = Server(tmp_path)
    server.wait()
    assert (tmp_path / "temporary.log").stat().st_mode & 0o077 == 0
    server.stop()
    assert server.process.poll() is not None


def damaged_database(path: Path) -> Path:
    """A database of which the second half is lost."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE run (name TEXT)")
        connection.executemany("INSERT INTO run VALUES (?)", [("x" * 100,)] * 1000)
    connection.close()
    os.truncate(path, path.stat().st_size // 2)
    return path


DAMAGE = {
    "truncated": damaged_database,
    "garbage": lambda path: path.write_bytes(b"no database" * 1000),
    "a tail of zeros": lambda path: (
        damaged_database(path),
        path.write_bytes(path.read_bytes() + bytes(path.stat().st_size)),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_database_is_moved_aside_with_a_line(tmp_path, capsys, damage):
    damage(tmp_path / "prefect.db")
    content = (tmp_path / "prefect.db").read_bytes()
    (tmp_path / "prefect.db-wal").touch()
    set_aside_damaged_database(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"warning  Prefect's database .*/prefect\.db is damaged \(.+\): it is moved to .*", line)
    aside, wal = sorted(tmp_path.iterdir())
    assert aside.name.startswith("prefect.db.damaged-")
    assert aside.read_bytes() == content
    assert wal.name == f"{aside.name}-wal"


def test_a_whole_database_an_empty_one_and_none_stay_as_they_are(tmp_path):
    assert database_problem(tmp_path / "prefect.db") == ""
    (tmp_path / "prefect.db").touch()
    assert database_problem(tmp_path / "prefect.db") == ""
    whole = sqlite3.connect(tmp_path / "whole.db")
    whole.execute("CREATE TABLE run (name TEXT)")
    whole.commit()
    whole.execute("BEGIN EXCLUSIVE")  # as another server may hold it
    assert database_problem(tmp_path / "whole.db") == ""
    whole.close()


def test_a_server_that_ends_or_is_not_ready_in_time_is_one_line_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary, "_APPLICATION", "no_such_module:app")
    server = Server(tmp_path)
    with pytest.raises(
        TryAgain,
        match=r"server was not ready within 0 s \(.*\): run the same command again; its log is .*/temporary\.log",
    ):
        server.wait(0)
    began = time.monotonic()
    with pytest.raises(
        TryAgain,
        match=r"ended with status \d \(.*no_such_module.*\): run the same command again; its log is .*/temporary\.log",
    ):
        server.wait(60)
    assert time.monotonic() - began < 50


def failure(status: int = 500) -> PrefectHTTPStatusError:
    """The error of Prefect's client if the server fails."""
    request = httpx.Request("POST", "http://127.0.0.1/api")
    return PrefectHTTPStatusError(
        f"Server error '{status}'\nResponse: ...", request=request, response=httpx.Response(status, request=request)
    )


@pytest.mark.parametrize("error", [failure(), httpx.ConnectError("refused")], ids=["500", "gone"])
def test_a_failing_server_is_one_line(tmp_path, error):
    line = r"Prefect's server failed \(.*\); what is finished is kept: run the same command again"
    with pytest.raises(TryAgain, match=line), server_errors(tmp_path):
        raise error


def test_a_server_that_fails_for_its_disk_says_so(tmp_path, monkeypatch):
    def full(_folder: Path) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(temporary, "check_space", full)
    with pytest.raises(StorageError, match="the disk is full"), server_errors(tmp_path):
        raise failure()


def test_a_server_that_fails_after_a_phase_does_not_hide_the_phases_error(tmp_path):
    def run() -> None:
        try:
            raise DataError("the data are wrong")
        finally:
            raise failure()

    with pytest.raises(DataError, match="the data are wrong"), server_errors(tmp_path):
        run()


def test_other_errors_keep_their_traceback(tmp_path):
    with pytest.raises(KeyError), server_errors(tmp_path):
        raise KeyError("a bug")


def test_the_check_of_the_disk_leaves_nothing(tmp_path):
    check_space(tmp_path)
    assert list(tmp_path.iterdir()) == []


def spin_on_a_small_disk(script: str) -> "subprocess.CompletedProcess[str]":
    """`spin run demo` with its runs folder on a disk of 2 MB, on which a shell script is run before."""
    script = f'mount -t tmpfs -o size=2m tmpfs /mnt && mkdir /mnt/runs && {script} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh",
         sys.executable, "-m", "flows.command_line", "run", "demo", "--runs", "/mnt/runs"],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    return done


DISKS = {
    "no space for a database": ("true", "the disk that holds /mnt/runs/.prefect is full: free some space and run .*"),
    "full": (
        "(head -c 9000000 /dev/zero > /mnt/x) 2> /dev/null || true",
        "the disk that holds /mnt/runs.* is full: free some .*",
    ),
    "read-only": ("mount -o remount,ro /mnt", "/mnt/runs.* cannot be written: make it writable, or choose another .*"),
}


@pytest.mark.parametrize(("script", "line"), DISKS.values(), ids=DISKS)
def test_a_disk_that_is_full_from_the_start_is_one_line_at_once(script, line):
    began = time.monotonic()
    done = spin_on_a_small_disk(script)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error  {line}\n", done.stderr), done.stderr
    assert time.monotonic() - began < 60
