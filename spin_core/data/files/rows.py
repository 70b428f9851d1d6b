"""Rows together with the file and the number of each, for messages."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from spin_core.data.formats.values import Row


class Rows(list[Row]):
    """Rows that know where they are."""

    def __init__(
        self, rows: Iterable[Row], file: str, first: int = 1, unread: Sequence[str] = (), total: int = 0
    ) -> None:
        """Take rows that follow each other in a file.

        Args:
            rows: the rows.
            file: the file's name.
            first: the number of the first row in the file, counted from 1.
            unread: names of columns that were not read, since nothing uses them.
            total: about how many rows the file has; 0 if that is not known.
        """
        super().__init__(rows)
        self.unread = set(unread)
        self.file, self.total = file, total
        self._parts = [(0, file, first)]

    def place(self, index: int) -> str:
        """Where a row is: `data.jsonl, row 12`."""
        start, file, first = self._parts[bisect_right(self._parts, index, key=lambda part: part[0]) - 1]
        return f"{file}, row {first + index - start}"

    def append_rows(self, other: "Rows") -> None:
        """Take the rows of another part of the source."""
        self._parts += [(len(self) + start, file, first) for start, file, first in other._parts]
        self.unread |= other.unread
        self.extend(other)


def rows_at(rows: Iterable[Row], name: str) -> Rows:
    """Rows that know where they are; those that do not are counted from 1 under the source's name."""
    return rows if isinstance(rows, Rows) else Rows(rows, name)
