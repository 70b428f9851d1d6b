"""Signals that stop a command that computes, and the exit status that says which it was."""

import contextlib
import signal
import subprocess
import sys

import pytest

from flows.command_line import signals


@pytest.fixture(autouse=True)
def _handlers(monkeypatch):
    """Put the handlers and what was received back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(signals, "_received", signal.SIGINT)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def streams_put_back():
    """Put the standard streams back, and close the one that took their place."""
    streams = sys.stdout, sys.stderr
    try:
        yield
    finally:
        if sys.stdout is not streams[0]:
            sys.stdout.close()
        sys.stdout, sys.stderr = streams


def test_ctrl_c_is_130():
    assert signals.exit_status() == 130


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_as_ctrl_c_does_and_is_the_status(number, status):
    signals.stop_on_signals()
    with streams_put_back(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signals.exit_status() == status


def test_the_end_of_the_terminal_comes_once_and_nothing_is_printed_after_it():
    signals.stop_on_signals()
    with streams_put_back():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        is_shared, name = sys.stdout is sys.stderr, sys.stdout.name
    assert is_shared
    assert name == "/dev/null"


def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.stop_on_signals()
    signal.raise_signal(signal.SIGHUP)
    assert signals.exit_status() == 130


LOADED = """
import sys, time
import click
from flows.command_line import main, run

def wait(*_arguments, **_settings):
    print("at work", flush=True)
    time.sleep(60)

import spin_core.config.resolve
import spin_core.leaderboard.scoring
spin_core.config.resolve.resolve = spin_core.config.resolve.read_changes = wait
main.main(sys.argv[1:])
"""
"""The command, which waits as soon as it reads its configuration: before it has a server."""


@pytest.mark.parametrize(
    ("command", "number"),
    [("run demo", signal.SIGTERM), ("run demo", signal.SIGINT), ("run demo", signal.SIGHUP),
     ("compare demo", signal.SIGTERM), ("evaluate demo", signal.SIGTERM)],
)  # fmt: skip
def test_a_command_that_is_stopped_before_its_server_starts_says_so(tmp_path, command, number):
    arguments = [sys.executable, "-c", LOADED, *command.split(), "--runs", str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == ("" if number == signal.SIGHUP else "stopped; the same command continues from here\n")
