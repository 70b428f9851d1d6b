"""The folder with the local server's state, `<runs>/.prefect`, and the server's password in it.

The database holds blocks and the key that decrypts them, and the password lets its holder run commands as this user. So
the folder is closed to other users from the first moment, whichever command makes it, and so is each file in it.
"""

import base64
import contextlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from spin_core.errors import ConfigError
from spin_core.store.files import storage_errors

OF_SERVER, OF_CLIENTS = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
"""Prefect's variables for the password, as name:password."""

SIGN_IN = "/sign-in"
"""The page of `spin up` that signs a browser in, by the password in the address's fragment, which is sent nowhere."""

_NAME = "spin"
"""The user name of a password that was made here."""

_TEMPORARY = "spin-up-"
"""How the names of folders for temporary files begin."""

_STORAGE = "storage"
"""Where Prefect keeps the errors of runs. It is made here because Prefect would make it readable by everyone."""

DATABASE = "prefect.db"
"""It is made here because Prefect would make it readable by everyone. SQLite accepts an empty file, and gives its other
files the permissions of the database."""


def state_folder(runs: Path) -> Path:
    """The folder of the local server's database."""
    return runs / ".prefect"


def prepare_state(state: Path) -> None:
    """Make the folder for its owner alone, or take from others what they may do with it and with the files in it.

    Raises:
        ConfigError: It belongs to another user.
    """
    with storage_errors(state.parent):
        state.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.suppress(FileExistsError):
            state.mkdir(mode=0o700)
        (state / _STORAGE).mkdir(mode=0o700, exist_ok=True)
        for path in open_to_others(state):
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
        open_private(state / DATABASE).close()
    except PermissionError as error:
        raise ConfigError(
            f"{state} belongs to another user: choose a folder of your own with --runs, or set PREFECT_API_URL and "
            f"{OF_CLIENTS} to the address and the name:password of their server"
        ) from error


@contextlib.contextmanager
def temporary_folder(state: Path) -> Iterator[Path]:
    """A folder for the temporary files of server, worker and runs, which is removed with all that they leave in it.

    A killed process leaves its files behind, and a killed `spin up` leaves the folder, which the next one removes. It
    is not in the state folder, since paths of sockets have at most 107 characters.

    Args:
        state: The state folder, which notes where the folder is.

    Yields:
        The folder, closed to other users.
    """
    note = state / "temporary"
    with contextlib.suppress(FileNotFoundError):
        _remove_temporary(Path(note.read_text("utf-8").strip()))
        note.unlink()
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    with open_private(note) as file:
        file.write(f"{folder}\n".encode())
    try:
        yield folder
    finally:
        _remove_temporary(folder)
        note.unlink(missing_ok=True)


def _remove_temporary(folder: Path) -> None:
    """Remove a folder that `temporary_folder` has made."""
    if folder.name.startswith(_TEMPORARY) and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def open_private(path: Path) -> BinaryIO:
    """Open a file for appending, which no other user may read if it is new."""
    return cast(BinaryIO, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab"))


def open_to_others(state: Path) -> list[Path]:
    """The folder and the files directly in it that other users may read or change, the folder first."""
    try:
        paths = [state, *sorted(state.iterdir())]
    except FileNotFoundError:
        return []
    return [path for path in paths if not path.is_symlink() and path.stat().st_mode & 0o077]


def password_file(state: Path) -> Path:
    """The file with the password of the server that has this state folder."""
    return state / "password"


def read_password(state: Path) -> str:
    """The password from the file; if that is missing or not readable, the environment's; else empty."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return password_file(state).read_text("utf-8").strip()
    return os.environ.get(OF_CLIENTS, "") or os.environ.get(OF_SERVER, "")


def choose_password(state: Path) -> str:
    """The password of a server that is about to start, which is written to the file for clients.

    It is the environment's, if that has one; else the file's, or a new one.

    Raises:
        ConfigError: The environment's password does not have the form that Prefect needs.
    """
    given, file = os.environ.get(OF_SERVER, ""), password_file(state)
    if given and not re.fullmatch(r"[!-9;-~]+:[!-~]+", given):
        raise ConfigError(f"{OF_SERVER} has another form: set it to name:password, in plain letters, digits and signs")
    existing = file.read_text("utf-8").strip() if file.exists() else ""
    chosen = given or existing or f"{_NAME}:{secrets.token_urlsafe(18)}"
    if chosen != existing:
        # By a rename, so that a command that starts at the same time reads one or the other.
        new = file.with_name(f"{file.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            print(chosen, file=out)
        if given:
            new.replace(file)
        else:
            try:
                os.link(new, file)
            except FileExistsError:  # another command was first
                pass
            except OSError:  # a file system without links
                new.replace(file)
            new.unlink(missing_ok=True)
            return file.read_text("utf-8").strip()
    return chosen


def sign_in_url(url: str, password: str) -> str:
    """The address that signs a browser in; empty if a user chose the password, which is then not repeated."""
    if not password.startswith(f"{_NAME}:"):
        return ""
    return f"{url}{SIGN_IN}#{base64.b64encode(password.encode()).decode()}"


def is_output_private() -> bool:
    """Whether no other user reads what is printed: into a terminal, a pipe, or a file that is closed to them."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # not a file
        return False
    mode = os.fstat(descriptor).st_mode
    return os.isatty(descriptor) or stat.S_ISFIFO(mode) or (stat.S_ISREG(mode) and not mode & 0o077)
