"""Names of classes from labels as they are written: one spelling for one class."""

import unicodedata
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))  # zero-width blanks, the byte order mark


def name_of(value: Any) -> str:
    """The name of a class: text in Unicode's form NFC, with single blanks; ``1``, ``1.0`` and ``"1"`` are ``1``.

    Returns:
        The name; empty for a value without a class: ``None``, NaN or blanks.

    Raises:
        ValueError: The value is neither text nor a whole number.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int):
        raise ValueError(f"must hold text or integers, got {value!r}")
    return " ".join(unicodedata.normalize("NFC", str(value)).translate(_INVISIBLE).split())


def ordered(names: Iterable[str]) -> list[str]:
    """The names sorted by value if all are whole numbers, else by alphabet."""
    listed = list(names)
    numeric = all(name.removeprefix("-").isdecimal() for name in listed)
    return sorted(listed, key=int if numeric else str)


def check(places: Mapping[str, str], column: str) -> None:
    """Refuse names that cannot be meant as classes.

    Args:
        places: Name -> file and line of its first occurrence.
        column: Name of the column of labels, for messages.

    Raises:
        ValueError: Two names differ in case alone or are the same number, or all are numbers with fractions among them.
    """
    numbers = {name: _number(name) for name in places}
    plain = None not in numbers.values()
    seen: dict[Any, str] = {}
    for name, place in places.items():
        number = numbers[name] if plain or _is_whole(numbers[name]) else None  # among words '3.1' and '3.10' are two
        for key in filter(lambda key: key is not None, (name.casefold(), number, _truth(name))):
            other = seen.setdefault(key, name)
            if other != name:
                raise ValueError(
                    f"{place}: column '{column}' holds '{name}', and '{other}' at {places[other]}: "
                    "one class has one spelling; correct one of them"
                )
    fraction = next((name for name in places if not _is_whole(numbers[name])), None)
    if plain and fraction is not None:
        raise ValueError(
            f"{places[fraction]}: column '{column}' holds scores ({fraction}), and a classifier tells classes apart: "
            "round them, or write classes as words"
        )


def check_count(names: Collection[str], rows: int, column: str) -> None:
    """Refuse a column that holds no classes.

    Args:
        names: Names of the classes.
        rows: Number of training rows with a label.
        column: Name of the column of labels, for messages.

    Raises:
        ValueError: There is one class only, or almost every row has its own.
    """
    if len(names) == 1:
        raise ValueError(
            f"column '{column}' holds one class alone ('{next(iter(names))}'): there is nothing to tell apart"
        )
    if len(names) > max(20, rows / 2):
        raise ValueError(
            f"column '{column}' holds {len(names)} classes in {rows} training rows, too few rows of each: is it the "
            "right one? (data.columns.label)"
        )


def _number(name: str) -> Decimal | None:
    """The number that a name represents, exactly: as floats, two ids of 64 bits may be equal."""
    try:
        number = Decimal(name) if name[-1:].isdigit() or name.endswith(".") else None
    except InvalidOperation:
        return None
    return number if number is not None and number.is_finite() else None


def _is_whole(number: Decimal | None) -> bool:
    return number is not None and number == number.to_integral_value()


def _truth(name: str) -> str | None:
    """A key that JSON's ``true`` shares with ``1``, as two spellings of one class; ``None`` for other names."""
    return {"true": "true or 1", "1": "true or 1", "false": "false or 0", "0": "false or 0"}.get(name.casefold())
