"""The folder with the local server's state, and the folder for temporary files that it names."""

import tempfile

import pytest

from flows.server import state


@pytest.fixture
def private(tmp_path, monkeypatch):
    """A state folder, and a folder for temporary files in place of the machine's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "runs" / ".prefect"
    state.prepare_state(folder)
    return folder


def test_temporary_files_are_removed_with_what_killed_processes_left_in_them(private):
    with state.temporary_folder(private) as folder:
        (folder / "left by a killed worker").mkdir()
        assert not state.open_to_others(private)
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    assert not (private / "temporary").exists()


@pytest.mark.parametrize("is_new", [True, False])
def test_errors_that_prefect_keeps_are_closed_to_others(private, is_new):
    storage = private / "storage"
    if not is_new:
        storage.chmod(0o755)
    state.prepare_state(private)
    (storage / "error").touch()
    assert storage.stat().st_mode & 0o077 == 0
    assert not state.open_to_others(private)


def test_the_next_start_removes_the_temporary_files_of_a_killed_one(private):
    left = state.temporary_folder(private).gen  # never ended, as after kill -9
    folder = next(left)
    (folder / "file").write_text("x")
    with state.temporary_folder(private) as new:
        assert not folder.exists()
        assert new.exists()
    left.close()


@pytest.mark.parametrize("link", [False, True])
def test_only_a_folder_made_for_temporary_files_is_removed(private, tmp_path, link):
    other = tmp_path / "precious"
    other.mkdir()
    named = tmp_path / "spin-up-link" if link else other
    if link:
        named.symlink_to(other)
    (private / "temporary").write_text(str(named))
    with state.temporary_folder(private):
        assert other.exists()
    assert other.exists()
