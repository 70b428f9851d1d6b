"""Reading rows: a JSON, JSONL, Parquet or CSV file, a local folder, a data set on the hub, or the built-in demo.

Files are read here rather than through `datasets`, so that a fault is named by its line, a CSV's numbers stay the
text that they are, and no stale copy of an edited file waits in a cache. Folders and the hub go through `datasets`.
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
from spin_core.errors import DataError, first_line

Row = dict[str, Any]

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")

DEMO = "demo"

DEMO_PREFERENCES = 4
"""Preferences of the built-in source about each of its prompts."""


def read_rows(source: SourceConfig, setting: str = "prompts.source") -> tuple[list[Row], str | None]:
    """All rows of a source, and the revision they come from if the source keeps any. `DataError` if there is none.

    `setting` is where the configuration names the source, for messages.
    """
    path = Path(source.path).expanduser()
    revision = None
    if path.is_file():
        rows = read_file(path)
    elif path.is_dir():
        rows, _ = from_datasets(path, source, setting)
    elif on_hub(source):
        rows, revision = from_datasets(None, source, setting)
    else:
        raise DataError(f"{source.path} does not exist: set {setting}.path to a file, a folder or a hub name")
    if not rows:
        raise DataError(f"{source.path} holds no rows: set {setting}.path to data with prompts and responses")
    return rows, revision


def on_hub(source: SourceConfig) -> bool:
    """Whether a source is no file or folder here, but may be a data set on the hub."""
    path = Path(source.path).expanduser()
    is_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source.path, re.ASCII) is not None
    return is_name and path.suffix not in SUFFIXES and source.path != DEMO and not path.exists()


def demo_rows(sample: int | None, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """The built-in source's training and held-out rows. `sample` is how many to draw; None asks every prompt once."""
    size = len(demo.prompts(held_out)[0]) if sample is None else sample
    train, other = demo.demonstrations(size, seed, held_out), demo.held_out_demonstrations(seed, held_out)
    return [{"prompt": p, "response": r} for p, r in train], [{"prompt": p, "response": r} for p, r in other]


def read_file(path: Path) -> list[Row]:
    """The rows of one file, read as its suffix says."""
    if path.suffix == ".parquet":
        try:
            rows: list[Row] = pq.read_table(path).to_pylist()
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} is no Parquet file ({first_line(error)}): write it again") from error
        return rows
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is of no kind that is read here: give it one of the suffixes {', '.join(SUFFIXES)}")
    text = read_text(path)
    if path.suffix == ".csv":
        return list(csv_rows(path, text))
    if text.lstrip().startswith("["):
        return json_rows(path, text)
    return list(jsonl_rows(path, text))


def read_text(path: Path) -> str:
    """A file's text. `DataError` names the line that is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8 (byte {data[error.start]:#04x}): save the file as UTF-8"
        ) from error


def jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    """One JSON object a line; blank lines are passed over."""
    # Only line feeds end a line: JSON strings may hold the other characters that `splitlines` breaks at.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number} is not JSON ({error.msg} at column {error.colno}): mend that line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is {type(row).__name__}, not a JSON object: mend that line")
        yield row


def json_rows(path: Path, text: str) -> list[Row]:
    """A JSON array of objects."""
    try:
        rows: list[Row] = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno} is not JSON ({error.msg} at column {error.colno}): mend that line"
        ) from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number} is {type(row).__name__}, not a JSON object: mend that row")
    return rows


def csv_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows of text under the names in the first line."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {reader.line_num} has not as many fields as the first line: "
                    "quote fields that hold commas"
                )
            yield row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.reader.line_num} is not CSV ({error}): mend that line") from error


def preference_rows(source: SourceConfig, setting: str) -> list[Row]:
    """All rows of preference data; the built-in source has some of its own."""
    if source.path != DEMO:
        return read_rows(source, setting)[0]
    return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in demo.preferences(DEMO_PREFERENCES)]


def from_datasets(folder: Path | None, source: SourceConfig, setting: str) -> tuple[list[Row], str | None]:
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
                    # Of a folder with a card, `datasets` would serve again what another folder of that name held.
                    cache_dir=fresh if folder else None,
                )
        except (OSError, ValueError, datasets.exceptions.DatasetsError, HTTPError) as error:
            where = "cannot be read as a data set" if folder else "is no file or folder here, nor found on the hub"
            raise DataError(f"{source.path} {where} ({first_line(error)}): mend {setting}") from error
        if isinstance(loaded, datasets.DatasetDict):
            if source.split not in loaded:
                raise DataError(
                    f"{source.path} has no split {source.split!r}: set {setting}.split to one of {', '.join(loaded)}"
                )
            loaded = loaded[source.split]
        rows: list[Row] = loaded.to_list()
        return rows, None if folder else commit_of(loaded.info.download_checksums) or source.revision


def commit_of(checksums: dict[str, Any] | None) -> str | None:
    """The hub commit named in the addresses of the files that `datasets` fetched."""
    found = (re.search(r"@([0-9a-f]{40})/", address) for address in checksums or {})
    return next((match[1] for match in found if match), None)
