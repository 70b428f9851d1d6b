"""What a lineage has on disk: published folders, and what should not be there once it is complete."""

import json
from pathlib import Path

from spin_core.store import artifacts


def digests(root: Path) -> dict[str, str]:
    """The digest of each published folder of a lineage, as its files have it now."""
    published = {}
    for manifest in sorted(root.rglob("manifest.json")):
        problems = artifacts.verify(manifest.parent)
        record = json.loads(manifest.read_text("utf-8"))["record"]
        published[str(manifest.parent.relative_to(root))] = "; ".join(problems) or record["digest"]
    return published


def differences(root: Path, reference: Path) -> list[str]:
    """The published folders of which one of two lineages has another content, or none."""
    have, want = digests(root), digests(reference)
    return [f"{root / name}" for name in sorted(have | want) if have.get(name) != want.get(name)]


def leftovers(root: Path, reference: Path) -> list[str]:
    """Files and folders that a complete lineage has and its reference has not, and scratch of what lineages share."""
    extra = _paths(root) - _paths(reference)
    shared = {path for pattern in (".*.partial", "*.pid", ".probe-*") for path in root.parent.rglob(pattern)}
    return sorted({f"{root / name}" for name in extra} | {str(path) for path in shared})


def temporary_files(folder: Path) -> list[str]:
    """What was left in a folder for temporary files, without torch's cache, which every process of a user shares."""
    return sorted(str(path) for path in folder.iterdir() if not path.name.startswith("torchinductor_"))


def _paths(root: Path) -> set[str]:
    """The relative paths of all files and folders, without logs, whose number depends on how often a phase began."""
    paths = (path.relative_to(root) for path in root.rglob("*"))
    return {str(path) for path in paths if "log" not in path.parts}
