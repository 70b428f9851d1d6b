"""Update a lineage's copy in a store, after every iteration. `pull` brings a copy back; `manifest` has its layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from spin_core.config.push import PushConfig
from spin_core.errors import ConfigError, DamagedArtifact, TryAgain
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import CONFIGURATION, Lineage
from spin_core.remote import storage
from spin_core.remote.manifest import MANIFEST, TEXTS, File, Manifest, files_of, local_path, read_manifest
from spin_core.remote.storage import Remote
from spin_core.store import identity
from spin_core.store.files import json_text

OnBytes = Callable[[int, int], None]
"""Called with the bytes that are transferred so far, and their total."""


@dataclass(frozen=True)
class Transfer:
    """The result of a push or a pull."""

    files: int
    """Files of the copy."""
    moved: int
    """Those of them that were transferred now."""
    bytes: int
    """The bytes that were transferred now."""


def check_copy(runs: Path, name: str, settings: PushConfig) -> None:
    """Check the store before a lineage starts or continues. Does nothing without a URL.

    Raises:
        ConfigError: The store cannot be written to; or it has a copy of a lineage of that name that is not in `runs`.
            Such a lineage would start again at θ_0, and its copy could not be updated.
        TryAgain: The store is not reachable now.
    """
    if not settings.url:
        return
    storage.check(settings.url)
    remote = _connect(settings.url, name)
    if not (lineage_folder(runs, name) / CONFIGURATION).exists() and read_manifest(remote) is not None:
        raise ConfigError(
            f"{remote.url} is the copy of a lineage {name} that is not in {runs}: bring it here with spin pull {name} "
            f"{settings.url}, or choose a new name with --lineage"
        )


def push(
    lineage: Lineage,
    settings: PushConfig,
    *,
    again: bool = False,
    replace: bool = False,
    on_bytes: OnBytes = lambda _done, _total: None,
) -> Transfer:
    """Upload what the copy lacks, and the manifest last. The caller holds the lineage's lock.

    Args:
        lineage: The lineage to copy.
        settings: The store.
        again: Read back files of an earlier push too, and upload the damaged ones again.
        replace: The same, and ignore the manifest of the copy, whatever it is a copy of.
        on_bytes: Called with the progress.

    Raises:
        ConfigError: The copy is of another lineage, or has files that are not here.
        DamagedArtifact: The copy's manifest is damaged, or a file here has changed since it was published.
    """
    remote = _connect(settings.url, lineage.name)
    _check_is_elsewhere(remote, lineage)
    manifest = None if replace else read_manifest(remote)
    copied = manifest.files if manifest else {}
    files = files_of(lineage)
    if not replace:
        _check_nothing_is_lost(remote, copied, files)
    missing = {path: file for path, file in files.items() if again or copied.get(path) != file}
    if not missing and copied.keys() == files.keys():
        return Transfer(len(files), 0, 0)
    total = sum(file.bytes for file in missing.values())
    upload = _Upload(lineage, remote, settings.read_back, lambda done: on_bytes(done, total))
    for path, file in missing.items():
        upload.ensure(path, file)
    # Only now the files that people read: until the manifest is replaced, its readers need none of these.
    for path, file in missing.items():
        if file.at != path:
            remote.upload(local_path(lineage.root, path), path)
    new = Manifest(lineage=lineage.name, spin=metadata.version("spin-loop"), files=files)
    remote.write(MANIFEST, json_text(new.model_dump(mode="json")).encode())
    used = {file.at for file in files.values()}
    for path in upload.sizes:
        if path.startswith(f"{TEXTS}/") and path not in used:
            remote.remove(path)
    return Transfer(len(files), upload.uploaded, upload.bytes)


class _Upload:
    """The uploads of one push. Files that an interrupted push has uploaded whole are not uploaded again."""

    def __init__(self, lineage: Lineage, remote: Remote, read_back: bool, on_bytes: Callable[[int], None]) -> None:
        self.lineage, self.remote, self.read_back, self.on_bytes = lineage, remote, read_back, on_bytes
        self.sizes = remote.sizes()
        self.done = self.uploaded = self.bytes = 0

    def ensure(self, path: str, file: File) -> None:
        """Upload the file unless the store has it with its size and digest."""
        if self.sizes.get(file.at) != file.bytes or self.remote.digest(file.at, file.bytes) != file.sha256:
            self._send(local_path(self.lineage.root, path), file)
        self.done += file.bytes
        self.on_bytes(self.done)

    def _send(self, source: Path, file: File) -> None:
        """Upload the file, and read it back to compare its digest."""
        if identity.digest_file(source) != file.sha256:
            raise DamagedArtifact(
                f"{source} changed since it was published: see spin verify {self.lineage.name}, and restore it"
            )
        self.remote.upload(source, file.at, lambda sent: self.on_bytes(self.done + sent))
        self.sizes[file.at] = file.bytes
        self.uploaded, self.bytes = self.uploaded + 1, self.bytes + file.bytes
        if self.read_back and self.remote.digest(file.at, file.bytes) != file.sha256:
            raise TryAgain(f"{self.remote.name(file.at)} did not arrive as it was sent: push again")


def _connect(url: str, name: str) -> Remote:
    """The folder of a lineage's copy."""
    return storage.connect(f"{url.rstrip('/')}/{name}")


def _check_is_elsewhere(remote: Remote, lineage: Lineage) -> None:
    """Raise `ConfigError` if the copy would be in the lineage's own folder, or contain it."""
    if not getattr(remote.fs, "local_file", False):
        return
    copy, own = Path(remote.root).resolve(), lineage.root.resolve()
    if copy.is_relative_to(own) or own.is_relative_to(copy):
        raise ConfigError(f"{remote.url} is the lineage's own folder {own}: push to another one")


def _check_nothing_is_lost(remote: Remote, copied: Mapping[str, File], files: Mapping[str, File]) -> None:
    """Raise `ConfigError` if a push would replace, or no longer refer to, a computed file of the copy."""
    for path, file in copied.items():
        # Files that may change are not at their own path, and may be replaced.
        if file.at == path and (path not in files or files[path].sha256 != file.sha256):
            what = "has another" if path in files else "also has"
            raise ConfigError(
                f"{remote.url} {what} {path}: bring that copy here with spin pull into another --runs, push to another "
                "URL, or have it replaced with spin push --replace"
            )
