"""Folders, output, streams and environments that a command cannot use: one line, or a result that is still right."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes.command_runner import run_spin

COMMANDS = (
    "run demo", "next demo", "evaluate demo", "compare demo", "up --port 4999", "status", "down", "leaderboard",
    "check demo", "verify demo", "show demo", "samples demo", "pull demo file:///nowhere", "push demo file:///nowhere",
)  # fmt: skip

FOLDERS = {
    "below a device": ("/dev/null/x", "cannot be a folder, because /dev/null is a file: choose another folder"),
    "a file": ("@/file", "cannot be a folder, because @/file is a file: choose another folder"),
    "below a file": ("@/file/runs", "cannot be a folder, because @/file is a file: choose another folder"),
    "a long name": (f"@/{'n' * 300}", r"cannot be a folder \(File name too long\): choose another folder"),
    "a line feed": ("@/two\nlines", "has characters that cannot be printed: choose another folder"),
    "not UTF-8": ("@/\udcff", "has characters that cannot be printed: choose another folder"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("runs", "line"), FOLDERS.values(), ids=FOLDERS)
def test_a_runs_folder_that_cannot_be_made_is_one_line(tmp_path, runs, line, command):
    (tmp_path / "file").touch()
    result = run_spin(*command.split(), "--runs", runs.replace("@", str(tmp_path)), status=2)
    (error_line,) = result.stderr.splitlines()
    assert re.fullmatch(f"error  --runs .* {line}".replace("@", re.escape(str(tmp_path))), error_line), error_line


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("command", ["run demo", "compare demo"])
def test_a_runs_folder_that_the_system_refuses_is_one_line(command):
    result = run_spin(*command.split(), "--runs", "/proc/no-such-folder", status=2)
    (error_line,) = result.stderr.splitlines()
    assert re.fullmatch(r"error  /proc/no-such-folder.* cannot be created \(.*\): choose another .*", error_line), (
        error_line
    )


LOOPS = {
    "a link to itself": (
        "loop",
        r"/loop/.* cannot be created \(Too many levels of symbolic links\): choose another .*",
    ),
    "a link to nothing": ("gone", r"/gone cannot be created, because a file is in the way: remove that file, or .*"),
}


@pytest.mark.parametrize(("target", "line"), LOOPS.values(), ids=LOOPS)
def test_a_runs_folder_that_is_a_link_to_nowhere_is_one_line(tmp_path, target, line):
    (tmp_path / target).symlink_to(tmp_path / ("loop" if target == "loop" else "absent"))
    error_line = run_spin("run", "demo", "--runs", tmp_path / target, status=2).stderr
    assert re.fullmatch(f"error  {re.escape(str(tmp_path))}{line}\n", error_line), error_line


def spin_process(*arguments: str, stdout: Any, **variables: str) -> tuple[int, str, str]:
    """Status, output and errors of the command in its own process, with its output in a file or a pipe."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.command_line", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout or "", done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["leaderboard tale", "leaderboard tale --json", "show tale", "recipes", "--help"])
def test_output_on_a_full_disk_is_one_line(lineage, command):
    with Path("/dev/full").open("w") as full:
        status, _, errors = spin_process(*command.split(), stdout=full, SPIN_RUNS=str(lineage.runs))
    line = "standard output cannot be written (No space left on device): send it to another file or to a terminal"
    assert (status, errors) == (2, f"error  {line}\n")


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
@pytest.mark.parametrize("command", ["leaderboard tale", "show tale", "samples tale", "leaderboard tale --json"])
def test_output_in_ascii_shows_other_letters_by_their_codes(lineage, command, variables):
    status, output, errors = spin_process(
        *command.split(), stdout=subprocess.PIPE, SPIN_RUNS=str(lineage.runs), **variables
    )
    assert (status, errors) == (0, "")
    assert re.search(r"θ_1|\\u03b8_1", output)
    if "--json" in command:
        assert json.loads(output)["rows"][1]["name"].endswith("1")


@pytest.mark.parametrize("command", ["leaderboard tale", "leaderboard tale --csv", "recipes --settings", "show tale"])
def test_a_reader_that_has_seen_enough_is_no_error(lineage, command):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert spin_process(*command.split(), stdout=writer, SPIN_RUNS=str(lineage.runs)) == (0, "", "")
    finally:
        os.close(writer)


SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "no home": {"HOME": None},
    "a home that does not exist": {"HOME": "/nonexistent"},
    "no folder for temporary files": {"TMPDIR": "/nonexistent"},
    "an unknown locale": {"LC_ALL": "xx_YY.bogus", "LANG": "?"},
    "an unknown time zone": {"TZ": "No/Where"},
    "an unknown terminal": {"TERM": "bogus", "COLUMNS": "many"},
    "a terminal without columns": {"COLUMNS": "0"},
    "settings of servers that are none": {"SPIN_UP": "?", "SPIN_RERUNS": "?"},
}


@pytest.mark.parametrize("variables", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_a_leaderboard_is_shown_in_odd_surroundings(lineage, monkeypatch, variables):
    monkeypatch.setenv("SPIN_RUNS", str(lineage.runs))
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    status, output, errors = spin_process("leaderboard", "tale", stdout=subprocess.PIPE)
    assert (status, errors) == (0, "")
    assert "θ_2" in output


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_error(lineage, closed):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "flows.command_line", "leaderboard"]
    done = subprocess.run(
        [*command, "tale", "--runs", lineage.runs], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("θ_2" in done.stdout) == (" >&-" not in f" {closed}" or closed == "2>&-")
