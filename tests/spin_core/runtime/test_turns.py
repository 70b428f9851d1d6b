"""Runs of one user on one machine take turns, whatever server they belong to and however they end."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from spin_core.runtime import turns

HOLDS = """
import sys
from spin_core.runtime import turns
with turns.turn("run of other", 1, print):
    print("computes", flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(turns.FOLDER, str(tmp_path / "turns"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(turns, "POLL_SECONDS", 0.01)
    return tmp_path / "turns"


@contextmanager
def other() -> Iterator[subprocess.Popen[str]]:
    """Another process that computes."""
    words = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "computes\n"
        yield process
        process.kill()


class Waiting:
    """A run in a thread of its own."""

    def __init__(self, name: str, limit: int = 1) -> None:
        self.ahead: list[Sequence[str]] = []
        self.begun, self.end = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(name, limit), daemon=True)
        self.thread.start()

    def _run(self, name: str, limit: int) -> None:
        with turns.turn(f"run of {name}", limit, self.ahead.append):
            self.begun.set()
            self.end.wait()

    def finish(self) -> None:
        self.end.set()
        self.thread.join()


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("ends", ["by itself", "by kill -9"])
def test_a_run_waits_until_the_other_ends_and_is_told_for_which(ends, folder):
    with other() as process:
        waiting = Waiting("mine")
        until(lambda: waiting.ahead)
        assert waiting.ahead == [[f"run of other (process {process.pid})"]]
        assert turns.running() == [f"run of other (process {process.pid})"]
        assert not waiting.begun.is_set()
        if ends == "by itself":
            process.communicate("\n")
        else:
            process.send_signal(signal.SIGKILL)
        assert waiting.begun.wait(20)
        waiting.finish()
    assert turns.running() == []
    assert [path.name for path in folder.iterdir()] == ["mutex"]


def test_runs_wait_in_the_order_in_which_they_came():
    first = Waiting("first")
    assert first.begun.wait(20)
    second = Waiting("second")
    until(lambda: second.ahead)
    third = Waiting("third")
    until(lambda: third.ahead)
    assert [text.split(" (")[0] for text in third.ahead[0]] == ["run of first", "run of second"]
    first.finish()
    assert second.begun.wait(20)
    assert not third.begun.is_set()
    second.finish()
    assert third.begun.wait(20)
    third.finish()


def test_as_many_run_at_once_as_the_limit_says():
    runs = [Waiting(name, 2) for name in ("a", "b")]
    assert all(run.begun.wait(20) for run in runs)
    third = Waiting("c", 2)
    until(lambda: third.ahead)
    runs[0].finish()
    assert third.begun.wait(20)
    for run in (runs[1], third):
        run.finish()


def test_a_run_without_a_limit_starts_at_once_and_others_wait_for_it():
    first = Waiting("first")
    assert first.begun.wait(20)
    unlimited = Waiting("unlimited", 0)
    assert unlimited.begun.wait(20)
    first.finish()
    third = Waiting("third")
    until(lambda: third.ahead)
    assert "run of unlimited" in third.ahead[-1][0]
    unlimited.finish()
    third.finish()


def test_a_folder_that_could_be_anothers_is_not_used(tmp_path, folder):
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        with turns.turn("run of mine", 1, print), turns.turn("run of mine", 1, print):
            assert turns.running() == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_environment_says_how_many_run_at_once(monkeypatch):
    for value, number in (("", 1), ("3", 3), ("0", 0), ("many", 1)):
        monkeypatch.setenv(turns.AT_ONCE, value)
        assert turns.at_once() == number
