"""Reading and writing small files atomically, and what storage errors mean for a user."""

import contextlib
import errno
import json
import os
import re
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
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
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
    """JSON as files have it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def dump_text(path: Path, text: str) -> None:
    """Write a text and flush it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into a line that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, name = errno_of(error), getattr(error, "filename", None) or folder
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk that holds {folder} is full: free some space and run the same command again; "
                "what is finished is kept"
            ) from error
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(
                f"{name} cannot be written: make it writable, or choose another folder with --runs"
            ) from error
        if number in (errno.ENOTDIR, errno.EEXIST):
            raise StorageError(
                f"{name} cannot be made, since a file stands in its way: remove that, or choose another folder "
                "with --runs"
            ) from error
        raise


def errno_of(error: OSError | SafetensorError) -> int | None:
    """The number of what the system refused. Safetensors has it in its text alone: `... (os error 28)`."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def dump(config: BaseModel) -> dict[str, Any]:
    """A record or configuration as JSON values."""
    return config.model_dump(mode="json")


def load(kind: type[M], path: Path, key: str | None = None) -> M:
    """A record from a JSON file, or from one key of it."""
    try:
        values = json.loads(path.read_text("utf-8"))
        return kind.model_validate(values[key] if key else values)
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedArtifact(
            f"{path} is damaged ({reason}): restore it, or remove {path.parent} to start over"
        ) from error
