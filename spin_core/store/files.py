"""Reading and writing small files atomically, and messages for storage errors."""

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from safetensors import SafetensorError

from spin_core.errors import DamagedArtifact, StorageError

M = TypeVar("M", bound=BaseModel)


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part of one."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part of one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors(path.parent):
        try:
            dump_text(scratch, text)
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def dump_json(path: Path, value: Any) -> None:
    """Write JSON and flush it to disk."""
    dump_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Format a value as JSON for a file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def dump_text(path: Path, text: str) -> None:
    """Write a text and flush it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checksum(path: Path, length: int | None = None) -> int:
    """CRC-32 of a file, or of its first `length` bytes. It finds accidental damage, and costs a fourth of a digest."""
    value, left = 0, path.stat().st_size if length is None else length
    with path.open("rb") as file:
        while left and (block := file.read(min(left, 2**24))):
            value, left = zlib.crc32(block, value), left - len(block)
    return value


@contextlib.contextmanager
def storage_errors(folder: Path, setting: str = "--runs") -> Iterator[None]:
    """Turn a full disk, a read-only folder, or a folder that cannot be created into a `StorageError` with one line.

    Args:
        folder: The folder that the block writes to. It may be created in the block.
        setting: The option or variable with which a user chooses another folder.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, name = _errno_of(error), getattr(error, "filename", None) or folder
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk that holds {folder} is full: free some space and run the same command again; "
                "what is finished is kept"
            ) from error
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(
                f"{name} cannot be written: make it writable, or choose another folder with {setting}"
            ) from error
        if number in (errno.ENOTDIR, errno.EEXIST):
            raise StorageError(
                f"{name} cannot be created, because a file is in the way: remove that file, or choose another folder "
                f"with {setting}"
            ) from error
        if number == errno.EISDIR:
            raise StorageError(
                f"{name} cannot be written, because a folder is in the way: remove that folder, or choose another "
                f"folder with {setting}"
            ) from error
        # Only an error about the folder or one above it: others concern single files, and callers may expect them.
        if isinstance(error, OSError) and error.strerror and Path(name) in (folder, *folder.parents):
            raise StorageError(
                f"{name} cannot be created ({error.strerror}): choose another folder with {setting}"
            ) from error
        raise


def _errno_of(error: OSError | SafetensorError) -> int | None:
    """The system's error number. Safetensors has it only in its text: `... (os error 28)`."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def json_values(config: BaseModel) -> dict[str, Any]:
    """Return a record or configuration as JSON values."""
    return config.model_dump(mode="json")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except OSError as error:
        raise ValueError(error.strerror) from error


def load(kind: type[M], path: Path, key: str | None = None) -> M:
    """Read a record from a JSON file, or from one key of it.

    Raises:
        DamagedArtifact: The file has no such record. The message says how to fix it.
    """
    try:
        values = read_json(path)
        return kind.model_validate(values[key] if key else values)
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        # All else in a lineage can be written again from its results. Its configuration is in lineage.json alone.
        fix = (
            f"restore it, or remove the folder {path.parent} to start over"
            if path.name == "lineage.json"
            else "remove that file and run the same command again; what is built is reused"
        )
        raise DamagedArtifact(f"{path} is damaged ({reason}): {fix}") from error
