"""What a lineage's copy in a store holds, and where.

    <url>/<lineage>/                      the lineage's folder as it is here, without what is unfinished
    <url>/<lineage>/.sft/<identity>/…     θ_0 of recipes that train their own, which is next to the lineages here
    <url>/<lineage>/.pushed/manifest.json SHA-256, size and path of every file; written last
    <url>/<lineage>/.pushed/texts/<sha256>

Files that a published folder's digest covers never change, and are stored at their own path. All others may change
(records, pages, configuration, timings, and scores, which may be made again). The manifest refers to those by their
digest, so that an interrupted push changes nothing for a reader of the earlier manifest. For people, a copy of each is
at its own path too.
"""

import fnmatch
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from spin_core.config.base import Frozen
from spin_core.errors import ConfigError, DamagedArtifact
from spin_core.lineage.lineage import CONFIGURATION, SHARED, Lineage
from spin_core.lineage.phase_jobs import base_job
from spin_core.remote.storage import Remote
from spin_core.store import artifacts, identity
from spin_core.store.weights_index import WEIGHTS_INDEX, indexed_files

_FOLDER = ".pushed"

MANIFEST = f"{_FOLDER}/manifest.json"

TEXTS = f"{_FOLDER}/texts"
"""The folder of files that may change, each called by its digest."""

_CHANGING = (
    CONFIGURATION,
    "leaderboard.json",
    "report.html",
    "iter_*/record.json",
    "iter_*/report.md",
    "nights/*.json",
    "metrics/*.json",
)
"""Files of a lineage outside its published folders that belong to the copy."""


class File(Frozen):
    """A file of the copy."""

    sha256: str
    bytes: int
    at: str
    """Its path in the store, below the lineage's folder."""


class Manifest(Frozen):
    """The files of a copy."""

    lineage: str
    spin: str
    """The version of this package that wrote it."""
    files: dict[str, File]
    """Files by their path below the lineage's folder here. `.sft/…` is next to that folder."""


def files_of(lineage: Lineage) -> dict[str, File]:
    """Every file that the copy of a lineage is to hold, by its path."""
    files: dict[str, File] = {}
    for folder in (*lineage.published(), *_shared_folders(lineage)):
        manifest = artifacts.read_manifest(folder)
        assert manifest is not None, f"{folder} is published"
        for name in manifest["files"]:
            if Path(name).name == WEIGHTS_INDEX:
                indexed_files(folder / name)
        # Evaluations may be made again with other settings, so nothing in them is fixed.
        is_evaluation = "eval" in folder.relative_to(lineage.runs).parts
        fixed = {} if is_evaluation else identity.content_of(manifest["files"])
        for name, entry in manifest["files"].items():
            path = _path_in_copy(lineage, folder / name)
            at = path if name in fixed else _text_path(entry["sha256"])
            files[path] = File(sha256=entry["sha256"], bytes=entry["bytes"], at=at)
        files |= _changing_file(lineage, folder / identity.MANIFEST)
    for pattern in _CHANGING:
        for path_here in sorted(lineage.root.glob(pattern)):
            files |= _changing_file(lineage, path_here)
    return files


def is_expected(path: str, paths: Collection[str]) -> bool:
    """Whether a push writes a file of this path: one of a published folder, or one that belongs to the lineage.

    Others would be work in progress, jobs or locks, which a program here would go on with.

    Args:
        path: The path, below the lineage's folder.
        paths: All paths of the copy.
    """
    folders = path.split("/")[:-1]
    below = path.removeprefix(f"{SHARED}/").split("/")
    if any(part in ("", "jobs") or part.startswith(".") for part in below):
        return False
    if any(fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in _CHANGING):
        return True
    if not folders or not re.fullmatch(rf"base|controls|iter_\d+|{re.escape(SHARED)}", folders[0]):
        return False
    return any(f"{'/'.join(folders[:depth])}/{identity.MANIFEST}" in paths for depth in range(2, len(folders) + 1))


def local_path(root: Path, path: str) -> Path:
    """The path here of a file of the copy, for a lineage whose folder is `root`."""
    return (root.parent if path.startswith(f"{SHARED}/") else root) / path


def read_manifest(remote: Remote) -> Manifest | None:
    """The manifest of a copy; None if there is no copy.

    Raises:
        DamagedArtifact: The manifest is damaged.
        ConfigError: It was written by another version of this package that this one cannot read.
    """
    try:
        value = remote.read_json(MANIFEST)
    except DamagedArtifact as error:
        raise DamagedArtifact(
            f"{error}: where the lineage is whole, write it again with spin push --replace; what is whole in the copy "
            "is not uploaded again"
        ) from error
    try:
        return None if value is None else Manifest.model_validate(value)
    except ValueError as error:
        raise ConfigError(
            f"{remote.name(MANIFEST)} cannot be read by this version of SPIN: use the version that wrote it "
            f"({_writer(value)}), or push to another URL"
        ) from error


def _writer(manifest: Any) -> str:
    """The version that wrote a manifest."""
    return str(manifest.get("spin", "unknown")) if isinstance(manifest, dict) else "unknown"


def _shared_folders(lineage: Lineage) -> list[Path]:
    """The published folders of a θ_0 that the recipe has trained: the untrained model, the training, and θ_0."""
    base = next((record.opponent.path for record in lineage.records() if record.opponent.t == 0), None)
    if base is None or SHARED not in base.parts:
        return []
    untrained = base_job(lineage).output
    return [folder for folder in (untrained, base.parent / "train", base) if artifacts.read_manifest(folder)]


def _changing_file(lineage: Lineage, path_here: Path) -> dict[str, File]:
    """The entry of a file that may change."""
    sha256 = identity.digest_file(path_here)
    entry = File(sha256=sha256, bytes=path_here.stat().st_size, at=_text_path(sha256))
    return {_path_in_copy(lineage, path_here): entry}


def _text_path(sha256: str) -> str:
    """The path in the store of a file that may change."""
    return f"{TEXTS}/{sha256}"


def _path_in_copy(lineage: Lineage, path_here: Path) -> str:
    """The path of a local file in the manifest."""
    root = lineage.root if path_here.is_relative_to(lineage.root) else lineage.runs
    return path_here.relative_to(root).as_posix()
