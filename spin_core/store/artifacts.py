"""The store: which results exist, what they were built from, and whether their files are unchanged.

A phase's output is published atomically: it is written to a scratch folder, flushed, given a manifest, and renamed
into place. So a folder with its final name is complete, and an unfinished result is not visible. The manifest has the
identity (the digest of the inputs), so that the same job reuses the result, and another job gets an error that names
the field that differs.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from spin_core.errors import DamagedArtifact, StaleArtifact
from spin_core.store.files import dump_json, read_json, sync
from spin_core.store.identity import (
    MANIFEST,
    content_of,
    current_identity,
    differences,
    digest_file,
    digest_folder,
    digest_of,
    shorten,
)
from spin_core.store.records import Artifact, Record

R = TypeVar("R", bound=Artifact)

_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


@with_config(ConfigDict(extra="allow"))
class _File(TypedDict):
    """What a manifest has of a file."""

    sha256: str
    bytes: NotRequired[int]


@with_config(ConfigDict(extra="allow"))
class _Manifest(TypedDict):
    """The values of a manifest."""

    identity: dict[str, Any]
    record: dict[str, Any]
    usage: dict[str, Any]
    files: dict[str, _File]


_MANIFEST: TypeAdapter[Any] = TypeAdapter(_Manifest)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder; None if nothing is published there."""
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedArtifact(
            f"{folder / MANIFEST} cannot be read ({error}): remove {folder} to build it again"
        ) from error
    try:
        checked: dict[str, Any] = _MANIFEST.validate_python(manifest, strict=True)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"])) or "all of it"
        raise DamagedArtifact(
            f"{folder / MANIFEST} is not a manifest ({field}: {error.errors()[0]['msg']}): remove {folder} to build it "
            "again"
        ) from error
    else:
        return checked


def read_record(folder: Path, kind: type[R]) -> R | None:
    """The record published in `folder`, with the path it has now; None if nothing is published there."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    try:
        record = _RECORD.validate_python({**manifest["record"], "path": str(folder)})
    except (TypeError, ValidationError) as error:
        raise DamagedArtifact(
            f"{folder / MANIFEST} has no readable record: remove {folder} to build it again"
        ) from error
    assert isinstance(record, kind), f"{folder} holds a {type(record).__name__}, not a {kind.__name__}"
    return record


def reusable(folder: Path, identity: Mapping[str, Any], kind: type[R]) -> R | None:
    """The record in `folder` if a job of this identity built it; None if nothing is published there.

    Raises:
        StaleArtifact: Another job built it. The message names the first field that differs.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    changed = differences(current_identity(manifest["identity"]), identity)
    if changed:
        name, have, wanted = changed[0]
        raise StaleArtifact(
            f"{folder} was built with {name} = {shorten(have)}, not {shorten(wanted)}"
            f"{f' (and {len(changed) - 1} more fields differ)' if len(changed) > 1 else ''}: "
            "choose a new lineage name, set the value back, or remove the folder"
        )
    return read_record(folder, kind)


def publish(
    scratch: Path,
    final: Path,
    identity: Mapping[str, Any],
    fields: Mapping[str, Any],
    kind: type[R],
    usage: Mapping[str, Any] | None = None,
) -> R:
    """Make the scratch folder the final one, and return its record.

    Everything is flushed to disk before the rename, and the manifest is the last file written. Hidden files are not
    published: they are files that a killed process was still writing.

    Args:
        scratch: The folder with the result's files. It does not exist afterwards.
        final: Its new path.
        identity: The identity of the job that made it.
        fields: The record's fields except path and digest.
        kind: The record's class.
        usage: Seconds, memory and versions. They are kept in the manifest and are not part of any digest.
    """
    for path in [path for path in scratch.rglob(".*") if path.is_file()]:
        path.unlink()
    digest, files = digest_folder(scratch)
    record = kind.model_validate({**fields, "path": str(final), "digest": digest})
    manifest = {
        "identity": dict(identity),
        "record": record.model_dump(mode="json", exclude={"path"}),
        "usage": dict(usage or {}),
        "files": files,
    }
    for path in scratch.rglob("*"):
        sync(path)
    # Written in place, because nothing reads it before the rename; so a kill here leaves no extra file behind.
    dump_json(scratch / MANIFEST, manifest)
    sync(scratch)
    if final.exists():
        # Only an unpublished leftover can be here: `reusable` has checked any folder with a manifest.
        shutil.rmtree(final)
    scratch.replace(final)
    sync(final.parent)
    return record


def verify(folder: Path) -> list[str]:
    """Return the problems of a published folder, one line each; empty if its files are unchanged."""
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
    listed = {*manifest["files"], MANIFEST}
    extra = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in listed
    ]
    problems += [f"{path}: not in the manifest" for path in extra]
    return problems
