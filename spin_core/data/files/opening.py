"""Files by their names: which format a suffix names, compressed or not, and text that is UTF-8."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from spin_core.errors import DataError, first_line

FORMATS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


class FileKind(NamedTuple):
    """What a file's name says of its content."""

    format: str
    """json, csv or parquet."""
    suffix: str
    """The format's suffix in lower case: `.jsonl` of `a.JSONL.gz`."""
    compression: str | None


def file_kind(path: Path) -> FileKind | None:
    """The kind of a file, by its name; None if files of that name are not read. Parquet has its own compression."""
    suffix = path.suffix.lower()
    compression = _COMPRESSIONS.get(suffix)
    if compression:
        suffix = Path(path.stem).suffix.lower()
    format = FORMATS.get(suffix)
    if format is None or (format == "parquet" and compression):
        return None
    return FileKind(format, suffix, compression)


@contextmanager
def open_text(path: Path, newline: str | None) -> Iterator[io.TextIOWrapper]:
    """A file as text, without a byte order mark. `newline` is as in `open`.

    Raises `DataError`, also while the file is read, for a line that is not UTF-8 and for a damaged compression.
    """
    try:
        with _open_bytes(path) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeDecodeError as error:
        raise DataError(f"{path}{_undecodable_line(path)}: save the file as UTF-8") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def count_lines(path: Path) -> int:
    """The number of lines of a file. Raises `DataError` for a damaged compression."""
    try:
        with _open_bytes(path) as data:
            return sum(block.count(b"\n") for block in iter(lambda: data.read(1 << 20), b""))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({first_line(error)}): check the file")


def _open_bytes(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed."""
    kind = file_kind(path)
    if kind is None or kind.compression is None:
        return path.open("rb")
    stream: IO[bytes] = pa.input_stream(str(path), compression=kind.compression)
    return stream


def _undecodable_line(path: Path) -> str:
    """Where a file is not UTF-8: `, line 3 is not UTF-8 (byte 0xe9)`."""
    with _open_bytes(path) as data:
        lines = io.BufferedReader(data)  # type: ignore[type-var]
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f", line {number} is not UTF-8 (byte {line[error.start]:#04x})"
    return " is not UTF-8"
