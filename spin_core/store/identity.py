"""Digests, and the identity of a job: everything that its result depends on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def short(value: Any) -> str:
    """A value as it appears in a message: digests are cut."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "…" if len(text) == 64 else text
