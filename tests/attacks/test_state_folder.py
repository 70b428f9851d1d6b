"""Attacks on the files of the local server by other users of the machine: they read passwords, blocks and their key."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from flows.server import local, serve, state
from spin_core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without Prefect's variables, and a umask that hides nothing from others."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "PREFECT" not in name})
    before = os.umask(0)
    yield monkeypatch
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The permissions of a folder and of the files in it."""
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (folder, *folder.iterdir())}


def test_the_files_of_a_run_are_never_readable_by_others(tmp_path):
    local.prepare(tmp_path / "runs", quiet=True)
    folders, files = (".prefect", "storage"), ("prefect.db", "password")
    expected = dict.fromkeys(folders, "0o700") | dict.fromkeys(files, "0o600")
    assert modes(tmp_path / "runs" / ".prefect") == expected


def test_a_folder_of_an_earlier_version_is_closed_at_the_next_start(tmp_path):
    folder = tmp_path / ".prefect"
    folder.mkdir()
    for name in ("prefect.db", "prefect.db-wal", "server.log", "password"):
        (folder / name).write_text("old:secret\n" if name == "password" else "")
        (folder / name).chmod(0o666)
    (folder / "storage").mkdir()
    local.prepare(tmp_path, quiet=True, to_serve=True)
    assert {name for name, mode in modes(folder).items() if mode not in ("0o600", "0o700")} == set()
    assert (folder / "password").read_text() == "old:secret\n"


def test_a_link_in_the_folder_changes_nothing_elsewhere(tmp_path):
    (tmp_path / "theirs").write_text("")
    (tmp_path / "theirs").chmod(0o644)
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "link").symlink_to(tmp_path / "theirs")
    state.prepare_state(tmp_path / ".prefect")
    assert stat.S_IMODE((tmp_path / "theirs").stat().st_mode) == 0o644


def test_the_folder_of_another_user_is_rejected_in_one_line(environment, tmp_path):
    def refuse(*_: object) -> None:
        raise PermissionError

    (tmp_path / "runs" / ".prefect").mkdir(parents=True)
    environment.setattr(Path, "chmod", refuse)
    with pytest.raises(ConfigError, match="belongs to another user: choose a folder of your own with --runs"):
        state.prepare_state(tmp_path / "runs" / ".prefect")


def test_the_address_file_is_closed_to_others(tmp_path):
    state.prepare_state(tmp_path / ".prefect")
    with serve._locked_address_file(local.address_file(tmp_path)):
        assert modes(tmp_path / ".prefect")["server.url"] == "0o600"


def test_status_warns_of_files_that_others_may_read(tmp_path):
    folder = tmp_path / ".prefect"
    folder.mkdir(mode=0o755)
    (folder / "prefect.db").touch()
    done = CliRunner().invoke(main, ["status", "--runs", str(tmp_path)])
    assert done.stderr == (
        f"warning  other users may read {folder}, {folder}/prefect.db, where passwords are: run "
        f"chmod -R go= {folder}, or spin up again\n"
    )
    state.prepare_state(folder)
    assert CliRunner().invoke(main, ["status", "--runs", str(tmp_path)]).stderr == ""


def test_two_commands_that_start_together_agree_on_the_password(environment, tmp_path):
    folder = tmp_path / ".prefect"
    state.prepare_state(folder)
    first = state.choose_password(folder)
    assert [state.choose_password(folder), state.read_password(folder)] == [first, first]
    environment.setitem(os.environ, state.OF_SERVER, "team:chosen")
    assert state.choose_password(folder) == state.read_password(folder) == "team:chosen"
    assert modes(folder)["password"] == "0o600"
