"""How commands are shown to a user: as they are to be typed in the current folder."""

from pathlib import Path

import pytest

from flows.command_line.options import spin_command


@pytest.fixture
def installation(tmp_path, monkeypatch) -> Path:
    """An environment `clone/.venv` with the command `spin`, which runs this process."""
    command = tmp_path / "clone" / ".venv" / "bin" / "spin"
    command.parent.mkdir(parents=True)
    command.touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(command.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    return command


def test_a_command_that_is_not_on_the_path_is_shown_relative_to_the_current_folder(installation, monkeypatch):
    monkeypatch.chdir(installation.parents[2])
    assert spin_command() == ".venv/bin/spin"


def test_elsewhere_it_is_shown_with_its_whole_path(installation, monkeypatch, tmp_path):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert spin_command() == str(installation)


def test_a_command_that_the_shell_finds_is_shown_by_its_name(installation, monkeypatch):
    monkeypatch.setenv("PATH", str(installation.parent))
    assert spin_command() == "spin"


def test_another_spin_on_the_path_is_not_meant(installation, monkeypatch, tmp_path):
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "spin").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "usr"))
    monkeypatch.chdir(installation.parents[2])
    assert spin_command() == ".venv/bin/spin"
