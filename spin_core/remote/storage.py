"""A folder in a store that fsspec reaches: S3 and what speaks like it, Google Cloud Storage, the hub, a network folder.

Every store's driver has errors of its own. From here they come as ours, in one line: `ConfigError` for what the user
can mend, `TryAgain` for what may pass.
"""

import contextlib
import errno
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.config.push import check_url
from spin_core.errors import ConfigError, DamagedArtifact, SpinError, StorageError, TryAgain, first_line

CHUNK_BYTES = 2**25

PROBE = ".spin-probe"

OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    # Left alone, botocore waits a minute, five times.
    "s3": {"config_kwargs": {"connect_timeout": 10, "retries": {"max_attempts": 2}}},
}

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
}


@dataclass(frozen=True)
class Remote:
    """A folder. Paths below it are relative, with forward slashes."""

    url: str
    fs: Any
    root: str
    """What the driver calls the folder."""

    def at(self, path: str) -> str:
        """What the driver calls a file."""
        return f"{self.root}/{path}"

    def name(self, path: str) -> str:
        """What a person calls a file."""
        return f"{self.url}/{path}"

    def sizes(self) -> dict[str, int]:
        """Bytes of every file that is there."""
        with self.errors():
            found = self.fs.find(self.root, detail=True)
        return {path.removeprefix(self.root).lstrip("/"): int(entry["size"]) for path, entry in found.items()}

    def read_json(self, path: str) -> Any:
        """A JSON file's value; None if it is not there. `DamagedArtifact` if it is none."""
        with self.errors():
            try:
                return json.loads(self.fs.cat_file(self.at(path)))
            except FileNotFoundError:
                return None
            except ValueError as error:
                raise DamagedArtifact(f"{self.name(path)} is damaged ({first_line(error)})") from error

    def write(self, path: str, content: bytes) -> None:
        """Write a file so that a reader sees the old one or the new one, never a part."""
        with self.errors():
            # A store shows an object once it is whole; a folder shows a file as it grows.
            scratch = f"{path}.part" if getattr(self.fs, "local_file", False) else path
            self.fs.pipe_file(self.at(scratch), content)
            if scratch != path:
                self.fs.mv(self.at(scratch), self.at(path))

    def upload(self, source: Path, path: str, tell: Callable[[int], None] = lambda _gone: None) -> None:
        """Copy a file there. `tell` is told how many bytes have gone, where the driver knows."""
        with self.errors():
            self.fs.put_file(str(source), self.at(path), callback=callback(tell))

    def digest(self, path: str, size: int) -> str:
        """SHA-256 of the bytes that the store gives back, of which there should be `size`."""
        digest = hashlib.sha256()
        with self.errors():
            if size <= CHUNK_BYTES:
                return hashlib.sha256(self.fs.cat_file(self.at(path))).hexdigest()
            with self.fs.open(self.at(path), "rb", block_size=CHUNK_BYTES) as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def download(self, path: str, target: Path, tell: Callable[[int], None] = lambda _gone: None) -> None:
        """Copy a file here; `tell` as in an upload."""
        with self.errors():
            self.fs.get_file(self.at(path), str(target), callback=callback(tell))

    def remove(self, path: str) -> None:
        """Remove a file that nobody needs: a store which forbids that keeps it."""
        with contextlib.suppress(SpinError), self.errors():
            self.fs.rm_file(self.at(path))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Tell a driver's error as one of ours."""
        try:
            yield
        except SpinError:
            raise
        except Exception as error:  # drivers share no base class
            raise explained(self.url, error) from error


def callback(tell: Callable[[int], None]) -> Any:
    """`tell` as fsspec asks for it."""
    from fsspec.callbacks import Callback

    return Callback(hooks={"tell": lambda _size, value, **_: tell(value)})


def connect(url: str) -> Remote:
    """The folder of that URL. Nothing is asked of the store yet.

    Raises `ConfigError` for a URL that has no driver here, or one with a secret in it.
    """
    import fsspec

    try:
        check_url(url)
        protocol = url.partition("://")[0]
        options = {**OPTIONS.get(protocol, {}), **fsspec.config.conf.get(protocol, {})}
        fs, root = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        extra = "install Spin with its extra `s3`" if protocol == "s3" else first_line(error)
        raise ConfigError(f"{url} needs a driver that is not installed: {extra}") from error
    except ValueError as error:
        raise ConfigError(first_line(error)) from error
    except Exception as error:  # some drivers connect at once
        raise explained(url, error) from error
    return Remote(url.rstrip("/"), fs, root.rstrip("/"))


def check(url: str) -> None:
    """Find out whether files can be written there, by writing one: `ConfigError` or `TryAgain` say why not."""
    # A name of its own, since runs that begin at once would take each other's away.
    remote, probe = connect(url), f"{PROBE}-{uuid.uuid4().hex}"
    remote.write(probe, b"spin\n")
    remote.remove(probe)


def explained(url: str, error: Exception) -> SpinError:
    """A driver's error as ours. Drivers name a class for credentials that are missing, and have no common one."""
    kind, said = type(error).__name__, first_line(error)
    protocol = url.partition("://")[0]
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{url}: {said}: make the bucket, or mend the URL")
    if isinstance(error, PermissionError) or "Credential" in kind:
        where = CREDENTIALS.get(protocol)
        cure = f"set its credentials in the environment ({where})" if where else "make it writable"
        return ConfigError(f"{url} cannot be used: {said}: {cure}")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{url}: {said}: free some space and run the same again; what is finished is kept")
    return TryAgain(f"{url} cannot be reached ({said}): look to the network and the store, and run the same again")
