"""Bringing a lineage back from its copy in a store, for who has lost the machine, or goes on at another."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from spin_core.errors import ConfigError, DamagedArtifact
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import SHARED
from spin_core.remote import storage
from spin_core.remote.push import CONFIGURATION, MANIFEST, File, Moved, Tell, here, read_manifest
from spin_core.remote.storage import Remote
from spin_core.store import files as store_files
from spin_core.store import identity, lock


def pull(runs: Path, name: str, url: str, tell: Tell | None = None) -> Moved:
    """Bring a lineage back from its copy; an interrupted pull goes on. What is counted is what was downloaded.

    Nothing counts as there before it is whole: a folder's manifest comes after its files, and the configuration, which
    makes the folder a lineage, last of all. Raises `ConfigError` if the lineage is here already or there is no copy,
    `DamagedArtifact` if a file of the copy no longer has its digest; all others are here then.
    """
    there = storage.connect(f"{url.rstrip('/')}/{name}")
    root = lineage_folder(runs, name)
    if (root / CONFIGURATION).exists():
        raise ConfigError(f"lineage {name} is in {runs} already: give another folder with --runs, or remove {root}")
    found = read_manifest(there)
    if found is None:
        raise ConfigError(f"{url} holds no lineage {name} that was pushed: mend the URL, or push it first")
    for path in found.files:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise DamagedArtifact(
                f"{there.name(MANIFEST)} names {path}, outside of the lineage: do not trust this copy"
            )
    with contextlib.ExitStack() as held:
        held.enter_context(store_files.storage_errors(root))
        held.enter_context(lock.locked(root))
        if any(path.startswith(f"{SHARED}/") for path in found.files):
            held.enter_context(lock.locked(runs / SHARED, wait=True))
        fetched, damaged = fetch(there, root, found.files, tell or (lambda _done, _total: None))
    if damaged:
        more = f" (nor do {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise DamagedArtifact(
            f"{there.name(damaged[0])} does not have the digest that was pushed{more}: where the lineage is whole, "
            f"spin push {name} {url} --again mends the copy"
        )
    return Moved(len(found.files), len(fetched), sum(file.bytes for file in fetched))


def fetch(there: Remote, root: Path, files: Mapping[str, File], tell: Tell) -> tuple[list[File], list[str]]:
    """Download what is not here. Returns that, and the places of what is damaged there: nothing is left of it here."""
    sizes, done, total = there.sizes(), 0, sum(file.bytes for file in files.values())

    def told(before: int, gone: int) -> None:
        tell(before + gone, total)

    fetched: list[File] = []
    damaged: list[str] = []
    for path in in_order(files):
        file, target = files[path], here(root, path)
        if not is_here(target, file, path):
            if path == CONFIGURATION and damaged:
                break
            if sizes.get(file.at) != file.bytes or not bring(there, file, target, partial(told, done)):
                damaged.append(file.at)
                continue
            fetched.append(file)
        done += file.bytes
        tell(done, total)
    return fetched, damaged


def in_order(paths: Iterable[str]) -> list[str]:
    """What makes a folder count comes after what lies in it."""
    return sorted(paths, key=lambda path: (path == CONFIGURATION, path.endswith(f"/{identity.MANIFEST}"), path))


def is_here(target: Path, file: File, path: str) -> bool:
    """The file is here already. A θ_0 that lineages share may have been timed differently, and no more than that."""
    if not target.exists():
        return False
    if identity.digest_file(target) == file.sha256:
        return True
    if path.startswith(f"{SHARED}/") and file.at == path:
        raise ConfigError(f"{target} is another than the lineage was played from: give another folder with --runs")
    return path.startswith(f"{SHARED}/")


def bring(there: Remote, file: File, target: Path, tell: Callable[[int], None]) -> bool:
    """Download a file; false if it does not have its digest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.pulled")
    there.download(file.at, scratch, tell)
    if identity.digest_file(scratch) != file.sha256:
        scratch.unlink()
        return False
    store_files.sync(scratch)
    scratch.replace(target)
    return True
