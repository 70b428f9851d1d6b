"""Bring a lineage back from its copy in a store: after the loss of a machine, or to continue on another one."""

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from spin_core.config import trust as trusts
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError, DamagedArtifact, ModelError
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import CONFIGURATION, SHARED
from spin_core.remote import storage
from spin_core.remote.manifest import MANIFEST, File, is_expected, local_path, read_manifest
from spin_core.remote.push import OnBytes, Transfer
from spin_core.remote.storage import Remote
from spin_core.store import identity, lock
from spin_core.store.files import json_values, load, storage_errors, sync
from spin_core.store.weights_index import WEIGHTS_INDEX, indexed_files


def pull(
    runs: Path,
    name: str,
    url: str,
    on_bytes: OnBytes = lambda _done, _total: None,
    *,
    trust: bool = False,
    warn: Callable[[str], None] = lambda _text: None,
) -> Transfer:
    """Bring a lineage back from its copy. An interrupted pull continues.

    Nothing counts as present before it is whole: the manifest of a folder comes after its files, and the configuration,
    which makes the folder a lineage, comes last.

    Args:
        runs: The folder that holds lineages.
        name: The lineage's name.
        url: The store's URL, without the name.
        on_bytes: Called with the progress.
        trust: Bring it also if its settings can run code, send keys or reach other machines.
        warn: Called with what such settings can do, if they are trusted.

    Raises:
        ConfigError: The lineage is here already, there is no copy, or its settings are not trusted.
        DamagedArtifact: A file of the copy does not have its digest. All other files are here then. Or the copy names
            files that no push writes.
    """
    remote = storage.connect(f"{url.rstrip('/')}/{name}")
    root = lineage_folder(runs, name)
    if (root / CONFIGURATION).exists():
        raise ConfigError(f"lineage {name} is in {runs} already: give another folder with --runs, or remove {root}")
    manifest = read_manifest(remote)
    if manifest is None:
        raise ConfigError(f"{url} holds no lineage {name} that was pushed: fix the URL, or push it first")
    _check_paths(remote, manifest.files)
    _check_inside(remote, [file.at for file in manifest.files.values()])
    if risks := _risks(remote, manifest.files, url):
        if not trust:
            raise ConfigError(
                f"{remote.url} has settings that can do more than compute: {'; '.join(risks)}: if you trust the people "
                "who pushed it, pull it with --trust"
            )
        warn(f"trusted: {'; '.join(risks)}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(root))
        stack.enter_context(lock.locked(root))
        if any(path.startswith(f"{SHARED}/") for path in manifest.files):
            stack.enter_context(lock.locked(runs / SHARED, wait=True))
        fetched, damaged = _fetch(remote, root, manifest.files, on_bytes)
    if damaged:
        more = f" (nor do {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise DamagedArtifact(
            f"{remote.name(damaged[0])} does not have the digest that was pushed{more}: where the lineage is whole, "
            f"spin push {name} {url} --again repairs the copy"
        )
    return Transfer(len(manifest.files), len(fetched), sum(file.bytes for file in fetched))


def _check_paths(remote: Remote, paths: Collection[str]) -> None:
    """Raise `DamagedArtifact` if a manifest would have files written that no push writes, or outside the lineage."""
    _check_inside(remote, paths)
    for path in paths:
        if not is_expected(path, paths):
            raise DamagedArtifact(f"{remote.name(MANIFEST)} names {path}, which no push writes: do not trust this copy")


def _check_inside(remote: Remote, paths: Iterable[str]) -> None:
    """Raise `DamagedArtifact` if a path leads out of its folder."""
    for path in paths:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise DamagedArtifact(
                f"{remote.name(MANIFEST)} names {path}, outside of the lineage: do not trust this copy"
            )


def _risks(remote: Remote, files: Mapping[str, File], url: str) -> list[str]:
    """What the settings of a copy's lineage and of its iterations can do beyond computing, without repetitions."""
    risks: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(path for path in files if path == CONFIGURATION or path.endswith("/record.json")):
            target = Path(folder, "settings.json")
            # With another content than its digest's it is damaged, and will not be kept.
            if not _download(remote, files[path], target, lambda _received: None):
                continue
            try:
                config = load(RunConfig, target, "config")
            except DamagedArtifact:
                risks[f"the settings in {path} cannot be read by this version"] = None
                continue
            own = config.push.url.rstrip("/") == url.rstrip("/")  # where the copy is now
            values = json_values(config) | ({"push": {}} if own else {})
            risks |= dict.fromkeys(trusts.risks(values))
    code = sum(path.endswith(".py") for path in files)
    if code and any(risk.startswith("model.trust_remote_code") for risk in risks):
        risks[f"Python files in it: {code}"] = None
    return list(risks)


def _fetch(remote: Remote, root: Path, files: Mapping[str, File], on_bytes: OnBytes) -> tuple[list[File], list[str]]:
    """Download the files that are not here.

    Returns:
        The downloaded files, and the paths in the store of damaged ones, of which nothing is kept here.
    """
    sizes, done, total = remote.sizes(), 0, sum(file.bytes for file in files.values())
    fetched: list[File] = []
    damaged: list[str] = []
    for path in _in_order(files):
        file, target = files[path], local_path(root, path)
        if not _is_here(target, file, path):
            if path == CONFIGURATION and damaged:
                break  # an incomplete folder must not become a lineage

            def on_file_bytes(received: int, before: int = done) -> None:
                on_bytes(before + received, total)

            if sizes.get(file.at) != file.bytes or not _download(remote, file, target, on_file_bytes):
                damaged.append(file.at)
                continue
            fetched.append(file)
        done += file.bytes
        on_bytes(done, total)
    return fetched, damaged


def _in_order(paths: Iterable[str]) -> list[str]:
    """Paths in the order of download: a manifest makes a folder valid, so it comes after the folder's files."""
    return sorted(paths, key=lambda path: (path == CONFIGURATION, path.endswith(f"/{identity.MANIFEST}"), path))


def _is_here(target: Path, file: File, path: str) -> bool:
    """Whether the file is here already. Of a shared θ_0 the timings may differ, but not the content.

    Raises:
        ConfigError: A shared θ_0 with the same settings, but other content, is here.
    """
    if not target.exists():
        return False
    if identity.digest_file(target) == file.sha256:
        return True
    if path.startswith(f"{SHARED}/") and file.at == path:
        raise ConfigError(f"{target} differs from what the lineage started from: give another folder with --runs")
    return path.startswith(f"{SHARED}/")


def _download(remote: Remote, file: File, target: Path, on_bytes: Callable[[int], None]) -> bool:
    """Download a file. False, and nothing is written, if it does not have its digest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.pulled")
    remote.download(file.at, scratch, on_bytes)
    if identity.digest_file(scratch) != file.sha256:
        scratch.unlink()
        return False
    if target.name == WEIGHTS_INDEX:
        try:
            indexed_files(scratch)
        except ModelError as error:
            scratch.unlink()
            raise DamagedArtifact(str(error).replace(str(scratch), str(target))) from error
    sync(scratch)
    scratch.replace(target)
    return True
