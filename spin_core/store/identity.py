"""Digests, and the identity of a job: everything that its result depends on.

A job's identity is its JSON without the fields that its class, or the classes of its settings, mark as `Execution`
(`spin_core.config.base`). Records that it reads count by their digest. A manifest keeps the identity of the job that
made a folder, so the same job finds its result again and another job is rejected.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from spin_core.config.base import EXECUTION
from spin_core.store.job_types import JOB_TYPES

MANIFEST = "manifest.json"

_UNDIGESTED = "log"
"""Files in this folder of an output are kept and verified, but do not count in its digest, since timings differ."""


def identity_of(job: BaseModel) -> dict[str, Any]:
    """What the result of a job depends on, as JSON values. Works for a part of a job or a configuration too."""
    return _without_execution(job.model_dump(mode="json"), type(job))


def current_identity(published: Mapping[str, Any]) -> dict[str, Any]:
    """An identity from a manifest without the fields that no longer count.

    Older versions counted some of the fields that are marked as `Execution` today. The class that declares them
    follows from the phase. Fields that it does not know stay, so that they appear as a difference.
    """
    kind = JOB_TYPES.get(published.get("phase", ""))
    return _without_execution(published, kind) if kind else dict(published)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The folder's digest, and the size and the digest of each file in it except the manifest."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": digest_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    return digest_of(content_of(files)), files


def content_of(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a folder's digest is computed from: the digest of each file by name, without timings."""
    return {name: entry["sha256"] for name, entry in files.items() if not name.startswith(f"{_UNDIGESTED}/")}


def differences(have: Any, want: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted names of the fields in which two JSON values differ, with both values.

    A field that one side lacks counts as None there, so a new optional field changes no identity while it is unset.
    """
    if isinstance(have, Mapping) and isinstance(want, Mapping):
        result = []
        for key in sorted({*have, *want}):
            name = f"{prefix}.{key}" if prefix else key
            result += differences(have.get(key), want.get(key), name)
        return result
    return [] if have == want else [(prefix, have, want)]


def shorten(value: Any) -> str:
    """A value as it appears in a message: digests are cut."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "…" if len(text) == 64 else text


def _without_execution(values: Mapping[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """JSON values of a model without its fields marked as `Execution`, and with the digest in place of each record."""
    # A marked field is found by its path from the root (`config.vllm.python`), not by its name alone. Otherwise a
    # setting, or a user's own key in a dictionary, with the same name elsewhere would leave the identity unnoticed.
    marked = _execution_paths(kind)

    def strip(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            if "digest" in value and "path" in value:
                return value["digest"]
            names = {name: f"{path}.{name}" if path else name for name in value}
            return {name: strip(value[name], names[name]) for name in value if names[name] not in marked}
        if isinstance(value, (list, tuple)):
            return [strip(item, path) for item in value]
        return value

    stripped: dict[str, Any] = strip(values, "")
    return stripped


@cache
def _execution_paths(kind: type[BaseModel], prefix: str = "") -> frozenset[str]:
    """Dotted names of the fields marked as `Execution` in a model and in the models that it contains."""
    paths = set[str]()
    for name, field in kind.model_fields.items():
        if EXECUTION in field.metadata:
            paths.add(prefix + name)
            continue
        for inner in _models_in(field.annotation):
            paths |= _execution_paths(inner, f"{prefix}{name}.")
    return frozenset(paths)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field may contain, as in `SftConfig | None` or `tuple[BenchmarkTask, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
