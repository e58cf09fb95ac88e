"""Training curves with few enough rows that a page with hundreds of curves stays small."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from slimexp.file import regular
from slimexp.record.schema import LARGEST

LONGEST = 1 << 26  # bytes of a file
NAMES = 100  # terms of a curve, and characters of a term
NUMBERS = 60_000  # numbers in all curves of a page, which are about half a megabyte of text
ROWS = (16, 240)  # fewest and most rows of one curve
DIGITS = 4  # significant ones; more cannot be seen
_STEP = "step"

Row = dict[str, float | None]


def curves(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Name -> curve of every file that exists and holds a row, as columns.

    A curve is ``{"step": [N], "terms": {name: [N]}, "each": logged rows per row}``, with the fewer rows the more curves
    there are.

    Args:
        paths: Name -> file of a curve.
    """
    read = {name: logged for name, path in paths.items() if (logged := _read(path))[0]}
    columns = sum(len(_names(rows)) + 1 for rows, _ in read.values())
    fewest, most = ROWS
    length = min(most, max(fewest, NUMBERS // max(1, columns)))
    return {name: _columns(thinned(rows, length), each, rows) for name, (rows, each) in read.items()}


def thinned(rows: Sequence[Row], most: int) -> list[Row]:
    """At most ``most`` rows, each the mean of neighbouring ones at the last of their steps.

    A mean neither misses a peak nor picks one. A term is the mean of the values that were logged; it is ``None`` where
    one of them was not finite, and absent where none was logged.
    """
    each = math.ceil(len(rows) / most)
    groups = [rows[start : start + each] for start in range(0, len(rows), each)]
    return [
        {_STEP: group[-1][_STEP]} | {name: _mean([row[name] for row in group if name in row]) for name in _names(group)}
        for group in groups
    ]


def _columns(rows: Sequence[Row], each: int, before: Sequence[Row]) -> dict[str, Any]:
    return {
        "step": [row[_STEP] for row in rows],
        "terms": {name: [row.get(name) for row in rows] for name in _names(rows)},
        "each": each * math.ceil(len(before) / len(rows)),
    }


def _read(path: Path) -> tuple[list[Row], int]:
    """Rows of a file, as many as a page shows at most, and the number of logged rows that each stands for."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return [], 1
    return _read_once(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _read_once(path: Path, changed: int, size: int) -> tuple[list[Row], int]:
    """The same, once for each state of the file: a served page is built again with every new record."""
    rows = list(_rows(path))
    return (thinned(rows, ROWS[1]), math.ceil(len(rows) / ROWS[1])) if rows else ([], 1)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name != _STEP))


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return float(f"{fmean(finite):.{DIGITS}g}") if finite and len(finite) == len(values) else None


def _rows(path: Path) -> Iterator[Row]:
    """Logged steps of a file; a line that is none (the torn last one of a killed process) or too long is left out."""
    try:
        lines = regular.content(path, LONGEST).decode("utf-8", errors="replace").split("\n")
    except (OSError, ValueError):
        return
    names = {_STEP}
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or type(row.get(_STEP)) is not int or _finite(row[_STEP]) is None:
            continue
        terms = {name: value for name, value in row.items() if type(value) in (int, float, type(None))}
        names |= {name for name in list(terms)[:NAMES] if len(names) < NAMES and len(name) <= NAMES}
        yield {name: _finite(value) for name, value in terms.items() if name in names}


def _finite(value: float | None) -> float | None:
    """``value`` where a page can draw it: a value beyond the largest metric counts as not finite."""
    return value if value is not None and abs(value) <= LARGEST else None
