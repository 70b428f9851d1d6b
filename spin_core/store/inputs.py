"""Check that what a phase reads is what was published.

A disk may damage a file, and a person may change one. Weights with one flipped bit load without an error, and what is
trained from them is not what its record says. So before a phase works, the folders that its job names are compared
with their manifests.

Reading everything again for each phase would be slow. What was compared by digest is noted in a file next to the job
files, with size and times of each file; the other phases of the same iteration then compare only those.
"""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spin_core.errors import DamagedArtifact
from spin_core.store import artifacts, files
from spin_core.store.identity import content_of, digest_file, digest_of
from spin_core.store.records import Artifact, ModelVersion

VERIFY = "SPIN_VERIFY"
"""The environment variable that turns this off with 0."""

_NOTE = "verified.json"

_THREADS = 4
"""How many files are read at a time; hashlib lets threads run in parallel."""

_Times = dict[str, list[int]]
"""Size, time of the last write and of the last change of each file in a folder."""


def check_inputs(job: BaseModel, jobs: Path) -> None:
    """Compare the folders that a job reads with their manifests, unless `SPIN_VERIFY` is 0.

    Args:
        job: The job.
        jobs: The folder of job files, in which it is noted what was compared.

    Raises:
        DamagedArtifact: A file is missing or has changed. The message says how to fix it.
    """
    if os.environ.get(VERIFY) == "0":
        return
    noted = _read_note(jobs / _NOTE)
    new: dict[str, _Times] = {}
    for artifact in {artifact.path: artifact for artifact in _artifacts_in(job)}.values():
        manifest = artifacts.read_manifest(artifact.path)
        if manifest is None:  # not published: the folder of a user's own job
            continue
        if digest_of(content_of(manifest["files"])) != artifact.digest:
            raise DamagedArtifact(f"{artifact.path} is not what this job was made for: {_fix(artifact)}")
        key = f"{artifact.digest} {artifact.path}"
        times = _times_of(artifact, manifest["files"])
        if noted.get(key) != times:
            _compare(artifact, manifest["files"])
            new[key] = times
    if new:
        with files.storage_errors(jobs):
            jobs.mkdir(parents=True, exist_ok=True)
            files.write_json(jobs / _NOTE, {**noted, **new})


def _artifacts_in(value: Any) -> Iterator[Artifact]:
    """All artifacts in a job's fields."""
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, BaseModel):
        for _, field in value:
            yield from _artifacts_in(field)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _artifacts_in(item)


def _times_of(artifact: Artifact, entries: Mapping[str, Any]) -> _Times:
    """Size and times of each file that a manifest names. Raises `DamagedArtifact` if one is missing."""
    times: _Times = {}
    for name in entries:
        try:
            status = (artifact.path / name).stat()
        except OSError as error:
            raise DamagedArtifact(
                f"{artifact.path / name} cannot be read ({error.strerror}): {_fix(artifact)}"
            ) from error
        times[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return times


def _compare(artifact: Artifact, entries: Mapping[str, Any]) -> None:
    """Compare each file's digest with the manifest. Raises `DamagedArtifact` for the first that differs."""

    def digest(name: str) -> str:
        try:
            return digest_file(artifact.path / name)
        except OSError as error:
            raise DamagedArtifact(
                f"{artifact.path / name} cannot be read ({error.strerror}): {_fix(artifact)}"
            ) from error

    with ThreadPoolExecutor(_THREADS) as threads:
        for name, have in zip(entries, threads.map(digest, entries), strict=True):
            if have != entries[name]["sha256"]:
                raise DamagedArtifact(f"{artifact.path / name} has changed since it was published: {_fix(artifact)}")


def _fix(artifact: Artifact) -> str:
    """How to go on without a damaged artifact."""
    folders = [artifact.path]
    # A model's training is published next to it, and would be reused without it.
    if isinstance(artifact, ModelVersion) and (training := artifact.path.with_name("train")).exists():
        folders.append(training)
    return (
        f"restore it from a copy, or remove {' and '.join(map(str, folders))} and run the same command again, which "
        "makes it again; --no-verify reads it as it is"
    )


def _read_note(path: Path) -> dict[str, Any]:
    """What was compared before; nothing if that cannot be read."""
    try:
        noted = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}
