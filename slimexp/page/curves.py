"""Training curves, thinned so that a page of hundreds of them stays small."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

NUMBERS = 60_000  # that all curves of a page may hold; about half a megabyte of text
ROWS = (16, 240)  # fewest and most rows of one curve
DIGITS = 4  # significant; more cannot be seen
_STEP = "step"

Row = dict[str, float | None]


def curves(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Name -> thinned curve, see ``thinned``, of all files that exist and hold a row."""
    read = {name: rows for name, path in paths.items() if (rows := list(_rows(path)))}
    columns = sum(len(_names(rows)) + 1 for rows in read.values())
    fewest, most = ROWS
    length = min(most, max(fewest, NUMBERS // max(1, columns)))
    return {name: thinned(rows, length) for name, rows in read.items()}


def thinned(rows: Sequence[Row], most: int) -> dict[str, Any]:
    """At most ``most`` rows as columns: ``{"step": [N], "terms": {name: [N]}, "each": logged rows per row}``.

    Neighbours become their mean, at the last of their steps, so that no peak is missed and none is chosen. A mean
    skips what was not logged; it is ``None`` where a value was logged and not finite, or none was logged.
    """
    each = math.ceil(len(rows) / most)
    groups = [rows[start : start + each] for start in range(0, len(rows), each)]
    return {
        "step": [group[-1][_STEP] for group in groups],
        "terms": {
            name: [_mean([row[name] for row in group if name in row]) for group in groups] for name in _names(rows)
        },
        "each": each,
    }


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name != _STEP))


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return float(f"{fmean(finite):.{DIGITS}g}") if finite and len(finite) == len(values) else None


def _rows(path: Path) -> Iterator[Row]:
    """Logged steps; what is no such line (the torn last one of a killed process) is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and _number(row.get(_STEP)) is not None:
            yield {name: _number(value) for name, value in row.items() if value is None or _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return value if _is_number(value) and math.isfinite(value) else None
