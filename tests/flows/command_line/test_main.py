"""The command `spin`: its help, its version, and how it reports errors."""

import importlib.metadata
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.command_line.main import main
from tests.support.processes.command_runner import refusal

COMMANDS = ["run", "next", "leaderboard", "show", "samples", "check", "verify", "export", "recipes", "up"]


def test_help_takes_less_than_half_a_second():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "flows.command_line", "--help"], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Self-play fine-tuning" in done.stdout
        # Processor time, since others may be using this machine.
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_commands_are_listed_in_the_order_of_use(spin):
    listed = spin("--help").output.split("Commands:\n")[1]
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]
    assert [name for name in names if name in COMMANDS] == COMMANDS
    assert names == list(main.commands)


@pytest.mark.parametrize("command", main.commands)
def test_every_command_says_what_it_is_for(spin, command):
    about = spin(command, "--help").output.split("Usage: ")[1].split("Options:")[0]
    assert about.strip().endswith(".")


def test_the_version_is_the_packages(spin):
    assert importlib.metadata.version("spin-loop") in spin("--version").output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "demmo"], "there is no recipe 'demmo' (did you mean demo?): choose one of"),
        (["run", "demo", "--set", "train.betta=1"], "train.betta is not a setting (did you mean train.beta?)"),
        (["run", "demo", "--set", "train.beta=-1"], "train.beta cannot be -1: give a number greater than 0"),
        (["run", "demo", "--set", "train.beta"], "--set 'train.beta' has no value"),
        (["run", "demo", "--iterations", "0"], "iterations cannot be 0: give a number greater than 0"),
        (["run", "demo", "--config", "/nowhere.yaml"], "/nowhere.yaml cannot be read (No such file or directory)"),
        (["run", "demo", "--lineage", "../up"], "'../up' cannot name a lineage"),
        (["run", "demo", "--lineage", "tale", "--set", "seed=9"], "lineage tale was started with "),
        (["compare", "demo", "--set", "push.url=nowhere://x"], "nowhere"),
        (["next", "none"], "there is no lineage 'none' in "),
        (["show", "none"], "there is no lineage 'none' in "),
        (["show", "tale", "7"], "lineage tale has no finished iteration 7: choose from 0 to 1"),
        (["samples", "none"], "there is no lineage 'none' in "),
        (["leaderboard", "tale", "none"], "there is no lineage 'none' in "),
        (["verify", "a/b"], "'a/b' cannot name a lineage"),
        (["export", "tale", "9", "--format", "dpo"], "lineage tale has no finished iteration 9"),
        (["export", "tale", "0", "--format", "dpo", "-o", "x.csv"], "x.csv cannot be written: give it the suffix"),
        (["recipes", "none"], "there is no recipe 'none'"),
        (["check", "none"], "there is no recipe 'none'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(spin, arguments, says):
    assert says in refusal(spin(*arguments, status=2))


def test_the_refusals_change_nothing(spin, lineage):
    before = (lineage.root / "lineage.json").read_bytes()
    spin("run", "demo", "--lineage", "tale", "--set", "seed=9", status=2)
    assert (lineage.root / "lineage.json").read_bytes() == before


def test_a_broken_settings_file_is_one_line(spin, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("train: [unclosed")
    assert "is not valid YAML, line 1, column 17: " in refusal(spin("run", "demo", "--config", file, status=2))


def test_a_runs_folder_below_a_file_is_one_line(spin, tmp_path):
    (tmp_path / "file").write_text("")
    line = refusal(spin("run", "demo", "--runs", tmp_path / "file" / "runs", status=2))
    assert "file is a file: choose another folder" in line


def test_a_runs_folder_that_cannot_be_created_is_one_line(spin):
    line = refusal(spin("run", "demo", "--runs", "/proc/spin-runs", status=2))
    assert "/proc/spin-runs cannot be created (No such file or directory): choose another folder with --runs" in line


def test_a_damaged_lineage_is_one_line(spin, lineage, tmp_path):
    shutil.copytree(lineage.runs, tmp_path / "runs")
    (tmp_path / "runs" / "tale" / "lineage.json").write_text("{")
    assert "lineage.json is damaged" in refusal(spin("show", "tale", "--runs", tmp_path / "runs", status=2))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("run", "missing argument 'RECIPE': see spin run --help"),
        ("ruin", "no such command 'ruin' (did you mean 'run'?): see spin --help"),
        ("--fast", "no such option '--fast': see spin --help"),
        (
            "run demo --iteratoins 2",
            "no such option '--iteratoins' (did you mean '--iterations'?): see spin run --help",
        ),
        (
            "run demo --iterations x",
            "invalid value for '--iterations': 'x' is not a valid integer: see spin run --help",
        ),
        ("run demo more", "got unexpected extra argument (more): see spin run --help"),
        ("export a 0", "missing option '--format'. Choose from: dpo, spin, merged, adapter: see spin export --help"),
    ],
)
def test_arguments_that_a_command_does_not_take_are_one_line(spin, arguments, line):
    assert refusal(spin(*arguments.split(), status=2)) == line


def test_spin_alone_prints_its_help(spin):
    assert "Commands:" in spin(status=2).output


def test_an_empty_runs_folder_is_rejected(spin):
    assert refusal(spin("leaderboard", "--runs", "", status=2)) == "--runs is empty: name a folder, or leave it out"


def test_a_runs_folder_that_does_not_exist_is_named(spin, tmp_path):
    output = spin("leaderboard", "--runs", tmp_path / "none").stdout
    assert output.startswith(f"{tmp_path / 'none'} does not exist: name another --runs, or start a lineage with ")
    assert output.endswith("spin run demo\n")


def test_the_installed_command_is_this_one(lineage):
    command = Path(sys.executable).with_name("spin")
    if not command.exists():
        pytest.skip("the package is not installed")
    done = subprocess.run(
        [command, "verify", "tale", "--runs", lineage.runs],
        capture_output=True,
        text=True,
        check=True,
        cwd=lineage.runs,
    )
    assert "are whole" in done.stdout
