"""Checks of single cells of a table, with messages that name file, line and column."""

import difflib
import re
import textwrap

from slimexp.data import label
from slimexp.data.reader import Row

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can hold it, UTF-8 cannot


def missing_column(column: str, row: Row, *, split: str) -> str:
    """Message for a row of ``split`` that lacks ``column``, with the columns that it has."""
    near = difflib.get_close_matches(column, row.cells, n=1)
    return (
        f"{row.place}: column '{column}' is missing in split '{split}'; there are: "
        f"{', '.join(map(str, row.cells)) or 'none'}"
        + (f"; did you mean '{near[0]}'?" if near else "")
        + " (name yours under data.columns)"
    )


def check_text(column: str, row: Row) -> None:
    """Refuse a cell that holds no text, or text that UTF-8 cannot represent.

    Raises:
        ValueError: Names file, line, column and value.
    """
    value = row.cells[column]
    if not isinstance(value, str):
        raise ValueError(
            f"{row.place}: column '{column}' must hold text, got {textwrap.shorten(repr(value), 40)}: "
            "fill or drop the row, or name another column"
        )
    if half := _LONE_SURROGATE.search(value):
        raise ValueError(
            f"{row.place}: column '{column}' holds half a character (\\u{ord(half[0]):x}, character "
            f"{half.start() + 1}): write the whole one, or drop the row"
        )


def label_name(column: str, row: Row) -> str:
    """The name of the class in a cell, not empty.

    Raises:
        ValueError: The cell is empty, or holds neither text nor a whole number; names file, line and column.
    """
    try:
        name = label.name_of(row.cells[column])
    except ValueError as error:
        raise ValueError(f"{row.place}: column '{column}' {error}") from error
    if not name:
        raise ValueError(f"{row.place}: column '{column}' is empty: give the row a label, or take it away")
    return name
