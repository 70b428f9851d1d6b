"""Rows of folders and of data sets on the hub, through `datasets`.

`datasets` says which files of a folder are a split, by its card or by the files' names. Files in formats that are read
here are read here, so that an error names its file and row and values stay as they are written.
"""

import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pyarrow as pa
from yaml import YAMLError

from spin_core.config.data import SourceConfig
from spin_core.data.files.opening import file_kind
from spin_core.data.files.parquet_rows import batch_rows, choose_columns
from spin_core.data.files.reading import PART, read_parts
from spin_core.data.files.rows import Rows
from spin_core.errors import DataError, first_line

_CARD = "README.md"
"""The card of a data set, which may name its files."""

_SAVED = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` writes."""


def read_folder(folder: Path, source: SourceConfig, setting: str, wanted: Collection[str] | None) -> Iterator[Rows]:
    """The rows of a split of a local folder. Raises `DataError` if it cannot be read."""
    import datasets

    script = folder / f"{folder.name}.py"
    if script.is_file():
        raise DataError(
            f"{folder} holds a data set script, {script.name}, which is not run: "
            f"set {setting}.path to data that it made, in a format such as Parquet"
        )
    # For a folder with a card, `datasets` would return from its cache what another folder of that name held.
    with tempfile.TemporaryDirectory() as fresh:
        if any((folder / name).exists() for name in _SAVED):
            with _reported(source, setting, "cannot be read as a data set"):
                loaded = datasets.load_from_disk(str(folder))
            yield from _table_parts(_split_of(loaded, source, setting), source, wanted)
            return
        links = _links_to(folder, Path(fresh) / "data", setting)
        if not any(path.is_symlink() and path.name != _CARD for path in links.rglob("*")):
            raise DataError(f"{folder} holds no data: set {setting}.path to a file or to a folder with files")
        with _reported(source, setting, "cannot be read as a data set"):
            builder = datasets.load_dataset_builder(str(links), name=source.subset, cache_dir=f"{fresh}/cache")
        files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
        _check_none_is_left_out(links, files, source, setting)
        if _is_read_here(builder, files):
            for file in _split_of(files, source, setting):
                yield from read_parts(folder / Path(file).relative_to(links), wanted, source.split)
            return
        with _reported(source, setting, "cannot be read as a data set"):
            builder.download_and_prepare()
            loaded = builder.as_dataset()
        yield from _table_parts(_split_of(loaded, source, setting), source, wanted)


def read_hub(source: SourceConfig, setting: str, wanted: Collection[str] | None) -> tuple[Iterator[Rows], str | None]:
    """The rows of a split of a data set on the hub, and its commit. Raises `DataError` if it cannot be read."""
    import datasets

    with _reported(source, setting, "is neither a file or folder here nor on the hub"):
        loaded = datasets.load_dataset(source.path, name=source.subset, revision=source.revision)
    split = _split_of(loaded, source, setting)
    return _table_parts(split, source, wanted), commit_of(split.info.download_checksums) or source.revision


def commit_of(checksums: dict[str, Any] | None) -> str | None:
    """The hub's commit, which is part of the URLs of the files that `datasets` downloaded."""
    matches = (re.search(r"@([0-9a-f]{40})/", url) for url in checksums or {})
    return next((match[1] for match in matches if match), None)


@contextmanager
def _reported(source: SourceConfig, setting: str, problem: str) -> Iterator[None]:
    """Raise `DataError` for what `datasets` raises about data that it cannot read."""
    import datasets
    from huggingface_hub.errors import HTTPError

    datasets.disable_progress_bars()
    kinds = (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, pa.ArrowException, BadZipFile)
    try:
        yield
    except (*kinds, YAMLError, datasets.exceptions.DatasetsError, HTTPError) as error:
        if subsets := re.search(r"available configs: \[(.+?)\]", str(error)):
            names = subsets[1].replace("'", "")
            raise DataError(f"{source.path} has several subsets: set {setting}.subset to one of {names}") from error
        raise DataError(f"{source.path} {problem} ({first_line(error)}): fix {setting}") from error


def _links_to(folder: Path, links: Path, setting: str) -> Path:
    """A folder of links to the visible files of a folder. Raises `DataError` if one is a link that leads nowhere.

    `datasets` takes paths for patterns, so brackets would mislead it. It reads files of the commonest type alone, so
    that notes and licences beside the data are left out here.
    """
    for target, file in _visible_files(folder):
        if not file.exists():
            raise DataError(
                f"{file} is a link to {file.readlink()}, which does not exist: restore that, remove the link, "
                f"or set {setting}.path to other data"
            )
        (links / target).parent.mkdir(parents=True, exist_ok=True)
        (links / target).symlink_to(file)
    found = list(links.rglob("*"))
    if any(file_kind(path) for path in found):
        for path in found:
            if path.is_symlink() and not file_kind(path) and path.name != _CARD:
                path.unlink()
    return links


def _visible_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The files of a folder that are not hidden: their paths within it, and their absolute paths."""
    visited = set[str]()
    for root, names, files in os.walk(folder, followlinks=True):
        # A link may lead back to a folder above it.
        if os.path.realpath(root) in visited:
            names.clear()
            continue
        visited.add(os.path.realpath(root))
        names[:] = [name for name in names if not name.startswith((".", "__"))]
        for name in files:
            if not name.startswith("."):
                yield Path(root).relative_to(folder) / name, (Path(root) / name).absolute()


def _check_none_is_left_out(
    links: Path, files: Mapping[str, Sequence[str]], source: SourceConfig, setting: str
) -> None:
    """Raise `DataError` if a file of data is in no split, unless the folder's card says which files are."""
    if not files or (links / _CARD).exists():
        return
    taken = {Path(file).resolve() for paths in files.values() for file in paths}
    left_out = sorted(path.relative_to(links) for path in links.rglob("*") if file_kind(path))
    left_out = [path for path in left_out if (links / path).resolve() not in taken]
    if left_out:
        some = ", ".join(map(str, left_out[:3])) + (" …" if len(left_out) > 3 else "")
        raise DataError(
            f"{source.path} holds {_difference(left_out, files)}, of which {some} would not be read: move these "
            f"elsewhere, or set {setting}.path to one file"
        )


def _difference(left_out: Sequence[Path], files: Mapping[str, Sequence[str]]) -> str:
    """Why `datasets` leaves files out: it reads one type, and where a name has a split, only names with one."""
    taken = {split: Path(paths[0]) for split, paths in files.items()}
    if {path.suffix for path in left_out} - {path.suffix for path in taken.values()}:
        return "data in files of several types"
    splits = ", ".join(f"{path.name} is split {split}" for split, path in taken.items())
    return f"files with and without a split in their names ({splits})"


def _is_read_here(builder: Any, files: Mapping[str, Sequence[str]]) -> bool:
    """Whether all files are in formats that are read here, and the folder's card does not say how to read them."""
    usual = type(builder.config)()
    options = {field.name for field in fields(usual)} - {"name", "version", "data_dir", "data_files", "description"}
    is_plain = all(getattr(builder.config, name) == getattr(usual, name) for name in options)
    return is_plain and all(file_kind(Path(file)) for split in files.values() for file in split)


def _split_of(splits: Any, source: SourceConfig, setting: str) -> Any:
    """The configured one of several splits."""
    if not isinstance(splits, Mapping):
        return splits
    if source.split not in splits:
        raise DataError(
            f"{source.path} has no split {source.split!r}: set {setting}.split to one of {', '.join(splits)}"
        )
    return splits[source.split]


def _table_parts(dataset: Any, source: SourceConfig, wanted: Collection[str] | None) -> Iterator[Rows]:
    """The rows of a data set of `datasets`, which stays on disk."""
    columns, unread = choose_columns(dataset.column_names, wanted, source.path)
    table = dataset.select_columns(columns).with_format("arrow")
    for start in range(0, len(dataset), PART):
        stop = min(start + PART, len(dataset))
        rows = batch_rows(table[start:stop], source.path) if columns else [{} for _ in range(start, stop)]
        yield Rows(rows, source.path, start + 1, unread, len(dataset))
