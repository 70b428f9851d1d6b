"""A folder in a store that fsspec reaches: S3 and compatible stores, Google Cloud Storage, the hub, a network folder.

Each store's driver has errors of its own. This module turns them into one-line errors of this package: `ConfigError`
for what the user can fix, `TryAgain` for what may pass.
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

_CHUNK_BYTES = 2**25
"""Bytes that are read at once to digest a large file."""

_PROBE = ".spin-probe"
"""How the small file begins that is written to find out whether the store can be written to."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    # By default botocore waits a minute, five times.
    "s3": {"config_kwargs": {"connect_timeout": 10, "retries": {"max_attempts": 2}}},
}

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
}


@dataclass(frozen=True)
class Remote:
    """A folder in a store. Paths below it are relative, with forward slashes."""

    url: str
    fs: Any
    root: str
    """The driver's name for the folder."""

    def at(self, path: str) -> str:
        """The driver's name for a file."""
        return f"{self.root}/{path}"

    def name(self, path: str) -> str:
        """The name of a file in messages: its URL."""
        return f"{self.url}/{path}"

    def sizes(self) -> dict[str, int]:
        """The size of every file, in bytes, by its path."""
        with self._errors():
            entries = self.fs.find(self.root, detail=True)
        return {path.removeprefix(self.root).lstrip("/"): int(entry["size"]) for path, entry in entries.items()}

    def read_json(self, path: str) -> Any:
        """The value of a JSON file; None if there is none. Raises `DamagedArtifact` if it is not JSON."""
        with self._errors():
            try:
                return json.loads(self.fs.cat_file(self.at(path)))
            except FileNotFoundError:
                return None
            except ValueError as error:
                raise DamagedArtifact(
                    f"{self.name(path)} is damaged ({first_line(error)}): push the lineage again"
                ) from error

    def write(self, path: str, content: bytes) -> None:
        """Write a file so that a reader sees the old content or the new one, never a part."""
        with self._errors():
            # An object store shows an object once it is whole. A folder shows a file while it is written.
            scratch = f"{path}.part" if getattr(self.fs, "local_file", False) else path
            self.fs.pipe_file(self.at(scratch), content)
            if scratch != path:
                self.fs.mv(self.at(scratch), self.at(path))

    def upload(self, source: Path, path: str, on_bytes: Callable[[int], None] = lambda _sent: None) -> None:
        """Copy a local file to the store. `on_bytes` is called with the bytes sent so far, if the driver knows."""
        with self._errors():
            self.fs.put_file(str(source), self.at(path), callback=_callback(on_bytes))

    def digest(self, path: str, size: int) -> str:
        """SHA-256 of the file's bytes, read back from the store. `size` is the expected number of bytes."""
        digest = hashlib.sha256()
        with self._errors():
            if size <= _CHUNK_BYTES:
                return hashlib.sha256(self.fs.cat_file(self.at(path))).hexdigest()
            with self.fs.open(self.at(path), "rb", block_size=_CHUNK_BYTES) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def download(self, path: str, target: Path, on_bytes: Callable[[int], None] = lambda _received: None) -> None:
        """Copy a file of the store to a local path. `on_bytes` is called with the bytes received so far."""
        with self._errors():
            self.fs.get_file(self.at(path), str(target), callback=_callback(on_bytes))

    def remove(self, path: str) -> None:
        """Remove a file that is no longer needed. A store that does not allow it keeps the file."""
        with contextlib.suppress(SpinError), self._errors():
            self.fs.rm_file(self.at(path))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn a driver's error into one of this package's."""
        try:
            yield
        except SpinError:
            raise
        except Exception as error:  # drivers share no base class
            raise _translated(self.url, error) from error


def _callback(on_bytes: Callable[[int], None]) -> Any:
    """`on_bytes` as a callback of fsspec."""
    from fsspec.callbacks import Callback

    return Callback(hooks={"bytes": lambda _size, value, **_: on_bytes(value)})


def connect(url: str) -> Remote:
    """The folder of that URL. The store is not contacted yet.

    Raises:
        ConfigError: The URL has no driver that is installed, or contains a secret.
    """
    import fsspec

    try:
        check_url(url)
        protocol, separator, _ = url.partition("://")
        if separator and protocol not in fsspec.available_protocols():
            raise ConfigError(f"no store is known whose URLs begin with {protocol}://: use file, s3, gs or hf")
        options = {**_OPTIONS.get(protocol, {}), **fsspec.config.conf.get(protocol, {})}
        fs, root = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
    except SpinError:
        raise
    except ImportError as error:
        extra = "install spin-loop with its extra `s3`" if protocol == "s3" else f"install it ({first_line(error)})"
        raise ConfigError(f"{url} needs a driver that is not installed: {extra}") from error
    except ValueError as error:
        raise ConfigError(first_line(error)) from error  # which says what to do, without a secret in the URL
    except Exception as error:  # some drivers connect at once
        raise _translated(url, error) from error
    return Remote(url.rstrip("/"), fs, root.rstrip("/"))


def check(url: str) -> None:
    """Check that files can be written below a URL, by writing and removing one.

    Raises:
        ConfigError: They cannot, and the user can fix it.
        TryAgain: The store is not reachable now.
    """
    # A unique name, because runs that start at the same time would remove each other's file.
    remote, probe = connect(url), f"{_PROBE}-{uuid.uuid4().hex}"
    remote.write(probe, b"spin\n")
    remote.remove(probe)


def _translated(url: str, error: Exception) -> SpinError:
    """A driver's error as one of this package's.

    Drivers have no common class for missing credentials, but the names of their classes contain the word.
    """
    kind, text = type(error).__name__, first_line(error)
    protocol = url.partition("://")[0]
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{url}: {text}: make the bucket, or fix the URL")
    if isinstance(error, PermissionError) or "Credential" in kind:
        where = _CREDENTIALS.get(protocol)
        fix = f"set its credentials in the environment ({where})" if where else "make it writable"
        return ConfigError(f"{url} cannot be used: {text}: {fix}")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{url}: {text}: free some space and run the same again; what is finished is kept")
    return TryAgain(f"{url} cannot be reached ({text}): check the network and the store, and run the same again")
