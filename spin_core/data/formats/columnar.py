"""Objects that hold a table column by column, as pandas writes it: `{"prompt": ["a", "b"], "response": ["c", "d"]}`."""

from typing import Any

from spin_core.data.formats.columns import CONTEXT
from spin_core.data.formats.values import Row
from spin_core.errors import DataError


def rows_of_columns(document: Row, place: str) -> list[Row]:
    """The rows of an object that holds columns; none if it does not.

    A list of dictionaries under a column's name may be the turns of a single row. So at least one column has texts or
    lists, which are no turns.

    Raises:
        DataError: the columns have different numbers of values, or number their rows differently.
    """
    columns = {name: _values_of(column) for name, column in document.items()}
    if not columns or any(values is None for values in columns.values()):
        return []
    lists: dict[str, list[Any]] = {name: values for name, values in columns.items() if values is not None}
    if not any(_holds_rows(name, values) for name, values in lists.items()):
        return []
    sizes = {name: len(values) for name, values in lists.items()}
    if len({*sizes.values()}) > 1:
        counts = ", ".join(f"{name} {size}" for name, size in list(sizes.items())[:10])
        raise DataError(
            f"{place} is one object with a list for each column, but they differ in length ({counts}): "
            "give an object for each row"
        )
    _check_numbers({name: [*column] for name, column in document.items() if isinstance(column, dict)}, place)
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _values_of(column: Any) -> list[Any] | None:
    """A column's values: a list, or a dictionary by the numbers of rows; None if it is neither."""
    if isinstance(column, dict) and column and all(key.isdecimal() for key in column):
        return list(column.values())
    return column if isinstance(column, list) else None


def _check_numbers(numbers: dict[str, list[str]], place: str) -> None:
    """Raise `DataError` unless all columns that number their rows do so alike, and in one order."""
    first = next(iter(numbers), "")
    for name, own in numbers.items():
        if own != numbers[first]:
            raise DataError(
                f"{place} is one object with a number for each row, but {first} and {name} number them differently: "
                "give an object for each row"
            )


def _holds_rows(name: str, values: list[Any]) -> bool:
    """Whether a column has a value for each of several rows. Columns of context may be lists of lists in one row."""
    return name not in CONTEXT and any(isinstance(value, str | list) for value in values)
