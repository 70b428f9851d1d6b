"""Processes: what the kernel says of them, and that they end with the process that started them."""

import os
import signal
import subprocess
import sys

import pytest

from spin_core.runtime.process import (
    children_of,
    command_line,
    environment_values,
    is_running,
    members_of_group,
    start_time,
)
from tests.support.helpers import ROOT
from tests.support.processes.children import python, wait_for


def test_a_process_is_described_while_it_runs_and_not_after_it_has_ended():
    own, environment = os.getpid(), {**os.environ, "SPIN_TEST_VALUE": "a=b c"}
    command = [sys.executable, "-c", "input()", "odd) name"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0, env=environment) as child:
        pid, started = child.pid, start_time(child.pid)
        wait_for(lambda: environment_values("SPIN_TEST_VALUE"))
        assert environment_values("SPIN_TEST_VALUE") == {"a=b c"}
        assert command_line(pid).split(b"\0")[1:4] == [b"-c", b"input()", b"odd) name"]
        assert pid in children_of(own)
        assert members_of_group(pid) == {pid}
        assert is_running(pid)
        assert int(start_time(own)) <= int(started)
        child.stdin.close()
        # A zombie, whose parent has not waited for it, has ended too.
        wait_for(lambda: not is_running(pid))
        assert start_time(pid) == ""
        assert pid not in children_of(own)
        assert members_of_group(pid) == set()
    assert command_line(pid) == b""
    assert environment_values("SPIN_TEST_VALUE") == set()


GUARDED = """
import os, pathlib, signal, sys
from spin_core.runtime import process

guard = process.guard

def killed(pid):
    pathlib.Path("pid").write_text(str(pid))
    if sys.argv[1] == "after":
        guard(pid)
    os.kill(os.getpid(), signal.SIGKILL)

process.guard = killed
with process.guarded(["sh", "-c", "touch started; sleep 600"]):
    pass
"""
"""Kills itself before or after the guard of a command has started."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_guarded_command_ends_with_a_process_that_is_killed_while_it_starts(moment, tmp_path):
    with python(GUARDED, moment, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.wait(60) == -signal.SIGKILL
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not members_of_group(pid))
    assert not (tmp_path / "started").exists()


SIGNALLED = """
import os, pathlib, signal, time
from spin_core.runtime import process

with process.guarded(["sh", "-c", 'trap "" TERM INT HUP; touch started; while :; do sleep 600; done']) as command:
    while not pathlib.Path("started").exists():
        time.sleep(0.05)
    assert len(process.others_in_group(command.pid)) == 1  # the sleep
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.killpg(command.pid, number)
    pathlib.Path("pid").write_text(str(command.pid))
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""Signals a whole group whose leader does not end by it, and is then killed."""


def test_a_guard_outlives_the_signals_that_ask_its_group_to_end(tmp_path):
    with python(SIGNALLED, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.wait(60) == -signal.SIGKILL
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not members_of_group(pid))
