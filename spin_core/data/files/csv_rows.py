"""Rows of CSV files: the names are in the first line, and the separator is found there."""

import csv
import re
import sys
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path

from spin_core.data.files.opening import FileKind, open_text
from spin_core.data.formats.values import Row
from spin_core.errors import DataError

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""The separators that are recognised."""

_STATED = re.compile('"?sep=(.)"?', re.IGNORECASE)
"""A line before the names that states the separator, as Excel reads and writes it."""


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
        lines = csv.reader(chain([first], file), delimiter=separator, strict=True)
        try:
            names = [name.strip() for name in next(lines, [])]
            doubled = sorted({name for name in names if name and names.count(name) > 1})
            if doubled:
                raise DataError(f"{path} has two columns named {doubled[0]}: rename one of them in the first line")
            for fields in lines:
                if not fields:
                    continue
                if len(fields) != len(names):
                    raise DataError(
                        f"{path}, line {lines.line_num + skipped} has fewer or more fields than the first line: "
                        f"quote fields that hold {_NAMES.get(separator, repr(separator))}"
                    )
                yield dict(zip(names, fields, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}, line {lines.line_num + skipped} is not CSV ({error}): fix that line") from error


def _separator_of(line: str, wanted: Collection[str], usual: str) -> str:
    """The separator that finds the most columns with a meaning; among equals the usual one, if it finds two columns."""

    def rank(separator: str) -> tuple[int, bool, int]:
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]
        except csv.Error:
            names = []
        return sum(name in wanted for name in names), separator == usual and len(names) > 1, len(names)

    return max(dict.fromkeys([usual, *_NAMES]), key=rank)
