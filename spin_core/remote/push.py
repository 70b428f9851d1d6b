"""A lineage's copy in a store, brought up to date after every iteration; `pull.py` brings it back.

    <url>/<lineage>/                      the lineage's folder as it is here, without what is unfinished
    <url>/<lineage>/.sft/<identity>/…     θ_0 of recipes that train their own, which lies beside lineages here
    <url>/<lineage>/.pushed/manifest.json every file's SHA-256, size and place; written last
    <url>/<lineage>/.pushed/texts/<sha256>

What a published folder's digest covers never changes, and lies at its own path. All else may change (records, pages,
configuration, timings, and scores, which may be made anew): the manifest finds it by its digest, so that an
interrupted push takes nothing from a reader of the manifest before; a copy also lies at its own path, for people.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from spin_core.config.base import Frozen
from spin_core.config.push import PushConfig
from spin_core.errors import ConfigError, DamagedArtifact, TryAgain
from spin_core.lineage import phase_jobs
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import SHARED, Lineage
from spin_core.remote import storage
from spin_core.remote.storage import Remote
from spin_core.store import artifacts, identity
from spin_core.store import files as store_files

FOLDER = ".pushed"

MANIFEST = f"{FOLDER}/manifest.json"

TEXTS = f"{FOLDER}/texts"

CONFIGURATION = "lineage.json"

CHANGING = (
    CONFIGURATION,
    "leaderboard.json",
    "report.html",
    "iter_*/record.json",
    "iter_*/report.md",
    "nights/*.json",
    "metrics/*.json",
)

Tell = Callable[[int, int], None]
"""Is told how many bytes of how many have gone."""


class File(Frozen):
    """A file of the copy."""

    sha256: str
    bytes: int
    at: str
    """Where it lies, below the lineage's folder in the store."""


class Manifest(Frozen):
    """What the copy holds."""

    lineage: str
    spin: str
    """The version that wrote it."""
    files: dict[str, File]
    """By their paths in the lineage's folder here; `.sft/…` lies beside that."""


@dataclass(frozen=True)
class Moved:
    """What a push or a pull did."""

    files: int
    """Files of the copy."""
    moved: int
    """Those of them that had to be brought there."""
    bytes: int
    """Their bytes."""


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
    there = storage.connect(f"{settings.url.rstrip('/')}/{name}")
    if not (lineage_folder(runs, name) / CONFIGURATION).exists() and read_manifest(there) is not None:
        raise ConfigError(
            f"{there.url} is the copy of a lineage {name} that is not in {runs}: bring it here with spin pull {name} "
            f"{settings.url}, or choose a new name with --lineage"
        )


def push(
    game: Lineage, settings: PushConfig, *, again: bool = False, replace: bool = False, tell: Tell | None = None
) -> Moved:
    """Upload what the copy lacks; the manifest last. Call it with the lineage's lock held.

    `again` reads back what was uploaded before, and mends it; `replace` does, and takes no heed of the copy's manifest.
    Without that, raises `ConfigError` if the copy is of another lineage, or has what is not here, and `DamagedArtifact`
    if its manifest cannot tell. `DamagedArtifact` also if a file here has changed since it was published.
    """
    there = storage.connect(f"{settings.url.rstrip('/')}/{game.name}")
    found = None if replace else read_manifest(there)
    have = found.files if found else {}
    files = files_of(game)
    if not replace:
        refuse_loss(there, have, files)
    missing = {path: file for path, file in files.items() if again or have.get(path) != file}
    if not missing and have.keys() == files.keys():
        return Moved(len(files), 0, 0)
    upload = Upload(game, there, settings.read_back, tell, sum(file.bytes for file in missing.values()))
    for path, file in missing.items():
        upload.ensure(path, file)
    for path, file in missing.items():
        if file.at != path:
            there.upload(here(game.root, path), path)
    manifest = Manifest(lineage=game.name, spin=metadata.version("spin-loop"), files=files)
    there.write(MANIFEST, store_files.json_text(manifest.model_dump(mode="json")).encode())
    named = {file.at for file in files.values()}
    for path in upload.sizes:
        if path.startswith(f"{TEXTS}/") and path not in named:
            there.remove(path)
    return Moved(len(files), upload.uploaded, upload.bytes)


class Upload:
    """Uploads of one push. What an interrupted one left there whole is not uploaded again."""

    def __init__(self, game: Lineage, there: Remote, read_back: bool, tell: Tell | None, total: int) -> None:
        self.game, self.there, self.read_back = game, there, read_back
        self.tell, self.total = tell or (lambda _gone, _total: None), total
        self.sizes = there.sizes()
        self.gone = self.uploaded = self.bytes = 0

    def ensure(self, path: str, file: File) -> None:
        """Have the file lie in its place with its digest."""
        if self.sizes.get(file.at) != file.bytes or self.there.digest(file.at, file.bytes) != file.sha256:
            self.send(here(self.game.root, path), file)
        self.gone += file.bytes
        self.tell(self.gone, self.total)

    def send(self, source: Path, file: File) -> None:
        """Upload the file, and see that it arrived."""
        if identity.digest_file(source) != file.sha256:
            raise DamagedArtifact(
                f"{source} changed since it was published: see spin verify {self.game.name}, and restore it"
            )

        self.there.upload(source, file.at, lambda gone: self.tell(self.gone + gone, self.total))
        self.sizes[file.at] = file.bytes
        self.uploaded, self.bytes = self.uploaded + 1, self.bytes + file.bytes
        if self.read_back and self.there.digest(file.at, file.bytes) != file.sha256:
            raise TryAgain(f"{self.there.name(file.at)} did not arrive as it was sent: push again")


def files_of(game: Lineage) -> dict[str, File]:
    """Every file that the copy is to have, by its path."""
    files: dict[str, File] = {}
    for folder in (*game.published(), *shared(game)):
        manifest = artifacts.read_manifest(folder)
        assert manifest is not None, f"{folder} is published"
        fixed = {} if "eval" in folder.relative_to(game.runs).parts else identity.content_of(manifest["files"])
        for name, entry in manifest["files"].items():
            path = path_of(game, folder / name)
            at = path if name in fixed else text_at(entry["sha256"])
            files[path] = File(sha256=entry["sha256"], bytes=entry["bytes"], at=at)
        files |= text(game, folder / identity.MANIFEST)
    for pattern in CHANGING:
        for found in sorted(game.root.glob(pattern)):
            files |= text(game, found)
    return files


def shared(game: Lineage) -> list[Path]:
    """The published folders of a θ_0 that the recipe trained for itself: the untrained model, and its training."""
    base = next((record.opponent.path for record in game.records() if record.opponent.t == 0), None)
    if base is None or SHARED not in base.parts:
        return []
    return [
        folder
        for folder in (phase_jobs.base_job(game).output, base.parent / "train", base)
        if artifacts.read_manifest(folder)
    ]


def text(game: Lineage, found: Path) -> dict[str, File]:
    """A file that may change."""
    sha256 = identity.digest_file(found)
    return {path_of(game, found): File(sha256=sha256, bytes=found.stat().st_size, at=text_at(sha256))}


def text_at(sha256: str) -> str:
    """Where a file lies that may change."""
    return f"{TEXTS}/{sha256}"


def path_of(game: Lineage, found: Path) -> str:
    """A file's path in the copy."""
    root = game.root if found.is_relative_to(game.root) else game.runs
    return found.relative_to(root).as_posix()


def here(root: Path, path: str) -> Path:
    """Where a file of the copy lies here."""
    return (root.parent if path.startswith(f"{SHARED}/") else root) / path


def read_manifest(there: Remote) -> Manifest | None:
    """What the copy holds; None if there is none."""
    try:
        value = there.read_json(MANIFEST)
    except DamagedArtifact as error:
        raise DamagedArtifact(
            f"{error}: where the lineage is whole, have it written anew with spin push --replace; what is whole there "
            "is not uploaded again"
        ) from error
    try:
        return None if value is None else Manifest.model_validate(value)
    except ValueError as error:
        raise ConfigError(
            f"{there.name(MANIFEST)} cannot be read by this version of Spin: take the version that wrote it "
            f"({value.get('spin', 'unknown') if isinstance(value, dict) else 'unknown'}), or push to another URL"
        ) from error


def refuse_loss(there: Remote, have: Mapping[str, File], files: Mapping[str, File]) -> None:
    """Raise `ConfigError` where a push would replace, or lose sight of, what was computed."""
    for path, file in have.items():
        if file.at == path and (path not in files or files[path].sha256 != file.sha256):
            what = "has another" if path in files else "also has"
            raise ConfigError(
                f"{there.url} {what} {path}: bring that copy here with spin pull into another --runs, push to another "
                "URL, or have it replaced with spin push --replace"
            )
