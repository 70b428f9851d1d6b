"""The store: what is built, from what, and whether it is still whole.

A phase's output is published atomically: it is written to a scratch folder, flushed, given a manifest, and renamed
into place. So a folder that bears its final name is complete, and half a result is invisible. The manifest names the
identity (the inputs' digest), so that the same work is reused and other work is refused, naming the field that differs.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from spin_core.errors import DamagedArtifact, LineageBusy, StaleArtifact, StorageError
from spin_core.records import Artifact, Record

MANIFEST = "manifest.json"
UNDIGESTED = "log"
"""Files under this folder of an output are kept and verified, but are no part of its digest: timings differ."""

WAYS = frozenset(
    {
        *("speed", "python", "api_key_env"),
        *("gradient_checkpointing", "micro_batch_tokens", "keep_checkpoints", "first_loss_tolerance"),
    }
)
"""Settings under these names say how, by which installation, in how much memory or at whose cost a result is reached:
no part of an identity."""

R = TypeVar("R", bound=Artifact)
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The folder's digest, and size and digest of each file in it, the manifest left out."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": digest_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    return digest_of(content_of(files)), files


def content_of(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a folder's digest is taken of: each file's own digest by name, timings left out."""
    return {name: entry["sha256"] for name, entry in files.items() if not name.startswith(f"{UNDIGESTED}/")}


def identity_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a job's result depends on: all of the job but where things lie and how fast it is to be done.

    Records count by their digest.
    """

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "digest" in value and "path" in value:
                return value["digest"]
            return {key: strip(item) for key, item in value.items() if key not in WAYS}
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value

    return {key: strip(value) for key, value in job.items() if key not in {"output", "weights", *WAYS}}


def differences(have: Any, want: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted names of the fields in which two JSON values differ, with both values."""
    if isinstance(have, Mapping) and isinstance(want, Mapping):
        found = []
        for key in sorted({*have, *want}):
            name = f"{prefix}.{key}" if prefix else key
            found += differences(have.get(key), want.get(key), name)
        return found
    return [] if have == want else [(prefix, have, want)]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder; None if nothing is published there."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedArtifact(
            f"{folder / MANIFEST} is not JSON ({error}): remove {folder} to build it again"
        ) from error
    if not isinstance(manifest, dict) or not {"identity", "record", "usage", "files"} <= manifest.keys():
        raise DamagedArtifact(f"{folder / MANIFEST} is no manifest: remove {folder} to build it again")
    return manifest


def read_record(folder: Path, kind: type[R]) -> R | None:
    """The record published in `folder`, with the path it has now; None if nothing is published there."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    try:
        record = _RECORD.validate_python({**manifest["record"], "path": str(folder)})
    except (TypeError, ValidationError) as error:
        raise DamagedArtifact(
            f"{folder / MANIFEST} holds no record that can be read: remove {folder} to build it again"
        ) from error
    assert isinstance(record, kind), f"{folder} holds a {type(record).__name__}, not a {kind.__name__}"
    return record


def reusable(folder: Path, job: Mapping[str, Any], kind: type[R]) -> R | None:
    """The record in `folder` if it was built by this very job; None if nothing is there.

    Raises `StaleArtifact`, naming the fields that differ, if it was built by another.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    want = identity_of(job)
    changed = differences(identity_of(manifest["identity"]), want)  # what an older version counted may count no more
    if changed:
        name, have, wanted = changed[0]
        raise StaleArtifact(
            f"{folder} was built with {name} = {short(have)}, not {short(wanted)}"
            f"{f' (and {len(changed) - 1} more fields differ)' if len(changed) > 1 else ''}: "
            "choose a new lineage name, set the value back, or remove the folder"
        )
    return read_record(folder, kind)


def short(value: Any) -> str:
    """A value as it appears in a message: digests are cut."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "…" if len(text) == 64 else text


def publish(
    scratch: Path,
    final: Path,
    job: Mapping[str, Any],
    fields: Mapping[str, Any],
    kind: type[R],
    usage: Mapping[str, Any] | None = None,
) -> R:
    """Make the scratch folder the final one. `fields` are the record's fields, but for path and digest.

    Everything is flushed to disk before the rename, and the manifest is the last file written. `usage` (seconds,
    memory, versions) is kept in the manifest and takes no part in any digest. Hidden files are not published: they
    are what a kill left of files that were being written.
    """
    for path in [path for path in scratch.rglob(".*") if path.is_file()]:
        path.unlink()
    digest, files = digest_folder(scratch)
    record = kind.model_validate({**fields, "path": str(final), "digest": digest})
    manifest = {
        "identity": identity_of(job),
        "record": record.model_dump(mode="json", exclude={"path"}),
        "usage": dict(usage or {}),
        "files": files,
    }
    for path in scratch.rglob("*"):
        sync(path)
    # Written in place, since nobody sees it before the rename: a kill here leaves no stray file to be published.
    dump_json(scratch / MANIFEST, manifest)
    sync(scratch)
    if final.exists():
        # Only an unpublished leftover can stand here: `reusable` has spoken for anything with a manifest.
        shutil.rmtree(final)
    scratch.replace(final)
    sync(final.parent)
    return record


def verify(folder: Path) -> list[str]:
    """What is wrong with a published folder, one line each; empty if it is whole."""
    try:
        manifest = read_manifest(folder)
        record = read_record(folder, Artifact)
    except DamagedArtifact as error:
        return [str(error)]
    if manifest is None or record is None:
        return [f"{folder}: nothing is published here"]
    problems = []
    if record.digest != digest_of(content_of(manifest["files"])):
        problems.append(f"{folder / MANIFEST}: its record's digest is not that of its files")
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif digest_file(path) != entry["sha256"]:
            problems.append(f"{path}: changed since it was published")
    known = {*manifest["files"], MANIFEST}
    extra = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in known
    ]
    problems += [f"{path}: not in the manifest" for path in extra]
    return problems


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


@contextlib.contextmanager
def locked(lineage: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder's lock. The kernel frees it when this process ends, however it ends.

    Raises `LineageBusy`, naming the holder, if another process has it and `wait` is off.
    """
    with storage_errors(lineage):
        lineage.mkdir(parents=True, exist_ok=True)
        file = (lineage / ".lock").open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LineageBusy(
                f"lineage {lineage.name} is in use by {holder}: wait for it to end, or choose another lineage name"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
