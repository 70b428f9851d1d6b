"""Reading rows: a JSON, JSONL, Parquet or CSV file, a local folder, a data set on the hub, or the built-in demo.

Files are read here rather than through `datasets`: so an error names its line, a CSV's numbers stay text, and no stale
copy of an edited file is in a cache. Folders and the hub go through `datasets`.
"""

import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.config.data import SourceConfig
from spin_core.data import demo
from spin_core.data.formats.values import Row
from spin_core.errors import DataError, first_line

_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")

DEMO = "demo"
"""The name of the built-in source."""

_DEMO_PREFERENCES = 4
"""How many preferences the built-in source has about each of its prompts."""


def read_rows(source: SourceConfig, setting: str = "prompts.source") -> tuple[list[Row], str | None]:
    """All rows of a source, and the hub's commit they come from, if they do.

    Args:
        source: a file, a folder or a data set on the hub.
        setting: where the configuration names the source, for messages.

    Raises:
        DataError: the source does not exist, cannot be read, or holds no rows.
    """
    path = Path(source.path).expanduser()
    revision = None
    if path.is_file():
        rows = read_file(path)
    elif path.is_dir():
        rows, _ = _from_datasets(path, source, setting)
    elif on_hub(source):
        rows, revision = _from_datasets(None, source, setting)
    else:
        raise DataError(f"{source.path} does not exist: set {setting}.path to a file, a folder or a hub name")
    if not rows:
        raise DataError(f"{source.path} holds no rows: set {setting}.path to data with prompts and responses")
    return rows, revision


def on_hub(source: SourceConfig) -> bool:
    """Whether a source may be a data set on the hub: it is neither a file nor a folder here, and has such a name."""
    path = Path(source.path).expanduser()
    is_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source.path, re.ASCII) is not None
    return is_name and path.suffix not in _SUFFIXES and source.path != DEMO and not path.exists()


def demo_rows(sample: int | None, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """The built-in source's training rows and held-out rows.

    Args:
        sample: how many training rows to draw; None for one to each prompt.
        held_out: how many prompts are held out.
        seed: another seed draws other responses.
    """
    size = len(demo.prompts(held_out)[0]) if sample is None else sample
    train, other = demo.demonstrations(size, seed, held_out), demo.held_out_demonstrations(seed, held_out)
    return [{"prompt": p, "response": r} for p, r in train], [{"prompt": p, "response": r} for p, r in other]


def preference_rows(source: SourceConfig, setting: str) -> list[Row]:
    """All rows of preference data. The built-in source has its own."""
    if source.path != DEMO:
        return read_rows(source, setting)[0]
    return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in demo.preferences(_DEMO_PREFERENCES)]


def read_file(path: Path) -> list[Row]:
    """The rows of one file, in the format that its suffix names."""
    if path.suffix == ".parquet":
        try:
            rows: list[Row] = pq.read_table(path).to_pylist()
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} is not a Parquet file ({first_line(error)}): write it again") from error
        return rows
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path} is in no format that can be read: give it one of the suffixes {', '.join(_SUFFIXES)}")
    text = _read_text(path)
    if path.suffix == ".csv":
        return list(_csv_rows(path, text))
    if text.lstrip().startswith("["):
        return _json_rows(path, text)
    return list(_jsonl_rows(path, text))


def _read_text(path: Path) -> str:
    """A file's text. Raises `DataError` with the line that is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8 (byte {data[error.start]:#04x}): save the file as UTF-8"
        ) from error


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    """One JSON object on each line; blank lines are skipped."""
    # Only line feeds end a line. JSON strings may hold the other characters at which `splitlines` breaks.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number} is not JSON ({error.msg} at column {error.colno}): fix that line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is {type(row).__name__}, not a JSON object: fix that line")
        yield row


def _json_rows(path: Path, text: str) -> list[Row]:
    """A JSON array of objects."""
    try:
        rows: list[Row] = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno} is not JSON ({error.msg} at column {error.colno}): fix that line"
        ) from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number} is {type(row).__name__}, not a JSON object: fix that row")
    return rows


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows of text, with the names in the first line."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {reader.line_num} has fewer or more fields than the first line: "
                    "quote fields that hold commas"
                )
            yield row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.reader.line_num} is not CSV ({error}): fix that line") from error


def _from_datasets(folder: Path | None, source: SourceConfig, setting: str) -> tuple[list[Row], str | None]:
    """One split of a local folder, or of a data set on the hub, and its commit there."""
    import datasets
    from huggingface_hub.errors import HTTPError

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as fresh:
        try:
            if folder is not None and any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
                loaded = datasets.load_from_disk(str(folder))
            else:
                loaded = datasets.load_dataset(
                    str(folder or source.path),
                    name=source.subset,
                    revision=source.revision if folder is None else None,
                    # For a folder with a card, `datasets` would return what another folder of that name held.
                    cache_dir=fresh if folder else None,
                )
        except (OSError, ValueError, datasets.exceptions.DatasetsError, HTTPError) as error:
            problem = "cannot be read as a data set" if folder else "is neither a file or folder here nor on the hub"
            raise DataError(f"{source.path} {problem} ({first_line(error)}): fix {setting}") from error
        if isinstance(loaded, datasets.DatasetDict):
            if source.split not in loaded:
                raise DataError(
                    f"{source.path} has no split {source.split!r}: set {setting}.split to one of {', '.join(loaded)}"
                )
            loaded = loaded[source.split]
        rows: list[Row] = loaded.to_list()
        return rows, None if folder else _commit_of(loaded.info.download_checksums) or source.revision


def _commit_of(checksums: dict[str, Any] | None) -> str | None:
    """The hub's commit, which is part of the URLs of the files that `datasets` downloaded."""
    matches = (re.search(r"@([0-9a-f]{40})/", url) for url in checksums or {})
    return next((match[1] for match in matches if match), None)
