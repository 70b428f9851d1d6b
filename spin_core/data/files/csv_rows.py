"""Rows of CSV files: the names are in the first line, and the separator is found there."""

import csv
import re
import sys
from collections import deque
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path

from spin_core.data.files.opening import FileKind, open_text
from spin_core.data.formats.values import Row
from spin_core.errors import DataError

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""The separators that are recognised."""

_LOOKAHEAD = 100
"""After how many lines of a quoted field that could each be a row its quote is taken literally."""

_STATED = re.compile('"?sep=(.)"?', re.IGNORECASE)
"""A line before the names that states the separator, as Excel reads and writes it."""


class _QuoteError(Exception):
    """Quotes are not as in CSV. The arguments are the number of the line and the problem."""


def read_csv(path: Path, kind: FileKind, wanted: Collection[str] | None) -> Iterator[Row]:
    """The rows of a CSV file; all values are text.

    Args:
        path: the file.
        kind: what its name says.
        wanted: names of columns with a meaning, to recognise the separator.

    Raises:
        DataError: a line has another number of fields than the first one, or the file is not CSV.
    """
    csv.field_size_limit(sys.maxsize)
    with open_text(path, newline="") as file:
        first = file.readline()
        stated = _STATED.fullmatch(first.strip())
        if stated:
            first = file.readline()
        separator = stated[1] if stated else _separator_of(first, wanted or (), "\t" if kind.suffix == ".tsv" else ",")
        skipped = 1 if stated else 0
        text = chain([first], file)
        rows = _tabbed_rows(text) if separator == "\t" else _quoted_rows(text, separator)
        try:
            _, header = next(rows, (0, []))
            names = [name.strip() for name in header]
            doubled = sorted({name for name in names if name and names.count(name) > 1})
            if doubled:
                raise DataError(f"{path} has two columns named {doubled[0]}: rename one of them in the first line")
            for number, fields in rows:
                if not fields:
                    continue
                if len(fields) != len(names):
                    raise DataError(
                        f"{path}, line {number + skipped} has fewer or more fields than the first line: "
                        f"quote fields that hold {_NAMES.get(separator, repr(separator))}"
                    )
                yield dict(zip(names, fields, strict=True))
        except _QuoteError as error:
            line, problem = error.args
            raise DataError(f"{path}, line {line + skipped} is not CSV ({problem}): fix that line") from error


def _separator_of(line: str, wanted: Collection[str], usual: str) -> str:
    """The separator that finds the most columns with a meaning; among equals the usual one, if it finds two columns."""

    def rank(separator: str) -> tuple[int, bool, int]:
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]
        except csv.Error:
            names = []
        return sum(name in wanted for name in names), separator == usual and len(names) > 1, len(names)

    return max(dict.fromkeys([usual, *_NAMES]), key=rank)


def _quoted_rows(lines: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row, with the number of its last line. Raises `_QuoteError`."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise _QuoteError(reader.line_num, error) from error


def _tabbed_rows(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row of a file with tabs, with the number of its last line.

    Many programs write such files without quotes, so a quote may be a part of a text. A field that begins with one is
    quoted if that makes a row of it, unless the lines that it extends over are rows by themselves.
    """
    waiting = deque[str]()
    number = width = 0
    while line := waiting.popleft() if waiting else next(lines, ""):
        fields, taken = _plain_fields(line), [line]
        if '"' in line:
            quoted = _quoted_fields(taken, waiting, lines, width or len(fields))
            if quoted is None:
                waiting.extendleft(reversed(taken[1:]))
                taken = taken[:1]
            else:
                fields = quoted
        number, width = number + len(taken), width or len(fields)
        yield number, fields


def _quoted_fields(taken: list[str], waiting: deque[str], lines: Iterator[str], width: int) -> list[str] | None:
    """The fields of a row that begins on a line, with quotes as in CSV; None if they are to be taken literally.

    Args:
        taken: the line; the ones that quoted fields extend over are added.
        waiting: the next lines.
        lines: the lines after those.
        width: how many fields a row has.
    """
    are_rows = len(_plain_fields(taken[0])) == width

    def following() -> Iterator[str]:
        nonlocal are_rows
        yield taken[0]
        while line := waiting.popleft() if waiting else next(lines, ""):
            taken.append(line)
            are_rows = are_rows and len(_plain_fields(line)) == width
            if are_rows and len(taken) > _LOOKAHEAD:
                return
            yield line

    try:
        fields = next(csv.reader(following(), delimiter="\t", strict=True))
    except csv.Error:
        return None
    return None if len(fields) != width or (are_rows and len(taken) > 1) else fields


def _plain_fields(line: str) -> list[str]:
    """The fields of a line with tabs; quotes around a whole field are taken off. An empty line has none."""
    line = line.rstrip("\r\n")
    return [_without_quotes(field) for field in line.split("\t")] if line else []


def _without_quotes(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if is_quoted else field
