"""Rows of JSON files.

A file has an object on each line, objects that follow each other, an array of objects, or one object with the rows
under a key or with a list of values for each column.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from spin_core.data.files.opening import FileKind, open_text
from spin_core.data.formats.columnar import rows_of_columns
from spin_core.data.formats.values import Row
from spin_core.errors import DataError

_DEEPEST = 100
"""How deep lists and objects may be nested."""

_LARGEST = 10**9
"""The most characters of a document that has not a row on each line. Its rows take a few times that in memory."""


_SPACE = re.compile(r"[ \t\n\r]+")


class _DoubledKeyError(Exception):
    """An object has a key twice. The message is the key."""


def read_json(path: Path, kind: FileKind, wanted: Collection[str] | None, split: str) -> Iterator[Row]:
    """The rows of a JSON file, one after the other where each has a line of its own.

    Args:
        path: the file.
        kind: what its name says.
        wanted: names of columns with a meaning; an object that has one of them is a row. None: every object is.
        split: the key to take if the file is one object with several lists of rows.

    Raises:
        DataError: a line or row is not a JSON object, or the file holds no list of rows.
    """
    # A line ends in a line feed, a carriage return, or both: JSON allows neither in a string.
    with open_text(path, newline=None) as file:
        number, line = _next_line(file, 0)
        if line.lstrip().startswith("["):
            for document in _parse_documents(path, number, line, file):
                if isinstance(document, list) and any(map(_is_turn, document[:1])):
                    raise DataError(
                        f"{path}, line {number} is a list of turns, not a JSON object: put each list into one, "
                        '{"messages": [...]}'
                    )
                yield from _objects(path, document if isinstance(document, list) else [document])
            return
        if kind.suffix == ".json" and line.lstrip().startswith("{"):
            if not _is_json(line):
                yield from _rows_in(path, _parse_documents(path, number, line, file), wanted, split)
                return
            following, following_line = _next_line(file, number)
            (first,) = _objects_on(line, f"{path}, line {number}")
            if not following_line:
                yield from _rows_in(path, [first], wanted, split)
                return
            yield first
            number, line = following, following_line
        while line:
            yield from _objects_on(line, f"{path}, line {number}")
            number, line = _next_line(file, number)


def _next_line(file: IO[str], number: int) -> tuple[int, str]:
    """The number and the text of the next line that is not blank. The text is empty at the end of the file."""
    for line in file:
        number += 1
        if line.strip():
            return number, line
    return number, ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_documents(path: Path, number: int, line: str, file: IO[str]) -> list[Any]:
    """The values of a whole file, of which a line was read already. Its size is limited, as all of it is in memory."""
    rest = file.read(_LARGEST)
    if len(rest) == _LARGEST:
        raise DataError(
            f"{path} is one JSON document of more than {_LARGEST:,} characters, which would be read at once: "
            "write a row on each line, as jq -c '.[]' does, and give the file the suffix .jsonl"
        )
    return _parse("\n" * (number - 1) + line + rest, str(path))


def _parse(text: str, place: str) -> list[Any]:
    """The values of a JSON text: one, or several objects or arrays without anything between them but white space.

    In errors, a place without a line gets the one where the text is wrong.
    """
    try:
        values = list(_decode(text))
    except json.JSONDecodeError as error:
        where = place if ", line " in place else f"{place}, line {error.lineno}"
        raise DataError(f"{where} is not JSON ({error.msg} at column {error.colno}): fix that line") from error
    except _DoubledKeyError as error:
        raise DataError(f"{place} has the key {error} twice in one object: remove one of them") from error
    except RecursionError as error:
        raise _too_deep(place) from error
    except ValueError as error:
        raise DataError(f"{place} holds a number with too many digits: write it as text") from error
    # Counting is fast, so that only long rows are walked through.
    if text.count("[") + text.count("{") > _DEEPEST and _depth_of(values) > _DEEPEST + 1:
        raise _too_deep(place)
    return values


def _decode(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(object_pairs_hook=_without_doubled_keys)
    value, end = decoder.raw_decode(text, _next_character(text, 0))
    yield value
    while (start := _next_character(text, end)) < len(text):
        if text[start] not in "[{":
            raise json.JSONDecodeError("Extra data", text, start)
        value, end = decoder.raw_decode(text, start)
        yield value


def _next_character(text: str, start: int) -> int:
    """The place of the next character that is not white space, or the text's end."""
    space = _SPACE.match(text, start)
    return space.end() if space else start


def _too_deep(place: str) -> DataError:
    return DataError(f"{place} is nested more than {_DEEPEST} levels deep: give rows of turns or text")


def _without_doubled_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DoubledKeyError(repr(next(key for key in keys if keys.count(key) > 1)))
    return row


def _depth_of(value: Any) -> int:
    """How many levels of lists and objects a value has."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _objects_on(line: str, place: str) -> list[Row]:
    """The object on a line; or several, without anything between them."""
    rows = _parse(line, place)
    for row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{place} is {type(row).__name__}, not a JSON object: fix that line")
    return rows


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any({*names} <= {*value} for names in (("role", "content"), ("from", "value")))


def _objects(path: Path, rows: list[Any]) -> list[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number} is {type(row).__name__}, not a JSON object: fix that row")
    return rows


def _rows_in(path: Path, documents: list[Any], wanted: Collection[str] | None, split: str) -> list[Row]:
    """The rows of a file. A single object has them under a key or column by column, or is a row with known columns."""
    if len(documents) > 1 or not isinstance(documents[0], dict):
        return _objects(path, documents)
    document = documents[0]
    if wanted is None or not {*wanted}.isdisjoint(document):
        return rows_of_columns(document, str(path)) or [document]
    nested = {key: rows for key, rows in document.items() if isinstance(rows, list) and rows}
    lists = {key: rows for key, rows in nested.items() if isinstance(rows[0], dict)}
    if len(lists) > 1 and split in lists:
        lists = {split: lists[split]}
    if len(lists) == 1:
        (rows,) = lists.values()
        return _objects(path, rows)
    if lists:
        keys = ", ".join(list(lists)[:10])
        raise DataError(
            f"{path} is one object with several lists of rows ({keys}): set the source's split to one of them"
        )
    keys = ", ".join(list(document)[:10]) or "(none)"
    raise DataError(
        f"{path} is one object, and none of its keys ({keys}) holds a list of rows: give an object for each row"
    )
