"""Searches for the page: budgets, candidates, what became of each, and its place among the points of the records.

A search leaves ``RUNS/NAME/search/search.json``, which ``candidate.report`` writes; older files lack some figures of
it. Its trainings leave records as all do: a candidate is found among them by its figures.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimexp.analysis.section import Section
from slimexp.analysis.style import title_of
from slimexp.file.bounded import read_object
from slimexp.file.integrity import Damaged, check_numbers, is_finite
from slimexp.record.record import Record

FOLDER, FILE = "search", "search.json"
_ANEW = "run the search again, whose scores and trainings are kept, or remove the file"
_STACK = re.compile(r"(encoder|decoder) ([.f\d]+)")  # decoder 44.8f
_MOST_BLOCKS = 999  # of a stack, in the picture of a candidate
_UNITS = {"disk_mb": "MB on disk", "latency_ms": "ms"}
_NUMBERS = ("added_nats", "whole_nats")
_ENDS = {"_composed": "composed", "_measured": "measured"}


def files(runs: Path) -> list[Path]:
    """Files of searches below a folder of runs, sorted; of a file of records, those beside it."""
    if not runs.is_dir():
        return sorted(runs.parent.glob(f"*/{FOLDER}/{FILE}"))
    return sorted(Path(folder, FILE) for folder, _, names in os.walk(runs) if FILE in names and _is_search(folder))


def searches(runs: Path, sections: Sequence[Section], records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """What the page shows of each search; of a file that is damaged, a message.

    Args:
        runs: The folder or file that the records were read from.
        sections: Sections of the records.
        records: Records by key.
    """
    shown = []
    for path in files(runs):
        try:
            shown.append(_search(path, read(path), sections, records))
        except Damaged as error:
            shown.append({"name": path.parent.parent.name, "message": str(error), "budgets": []})
    return shown


def read(path: Path) -> dict[str, Any]:
    """The content of a search's file.

    Raises:
        Damaged: It is not what a search writes; the message says what is wrong, and the way out.
    """
    content = read_object(path, strict=True, way_out=_ANEW)
    try:
        _check(content)
    except Damaged as error:
        raise Damaged(f"'{path}' is damaged ({error}): {_ANEW}") from error
    return content


def _is_search(folder: str) -> bool:
    return os.path.basename(folder) == FOLDER


def _check(content: Mapping[str, Any]) -> None:
    _require(isinstance(content.get("headline"), str), "headline is no name of a metric")
    _require(content.get("direction") in (None, "min", "max"), "direction is neither min nor max")
    check_numbers({"seconds": content.get("seconds")}, "search")
    check_numbers(content.get("composed_minus_measured", {}), "composed_minus_measured")
    check_numbers(content.get("blocks", {}), "blocks")
    budgets = content.get("budgets")
    _require(isinstance(budgets, list) and bool(budgets), "budgets are no list")
    for number, budget in enumerate(budgets or ()):
        where = f"budgets[{number}]"
        _require(isinstance(budget, dict) and isinstance(budget.get("candidates"), list), f"{where} has no candidates")
        check_numbers(budget.get("limits"), f"{where}.limits")
        _require(all(limit > 0 for limit in budget["limits"].values()), f"{where}.limits are not all > 0")
        for place, row in enumerate(budget["candidates"]):
            _check_row(row, f"{where}.candidates[{place}]")


def _check_row(row: Any, where: str) -> None:
    _require(isinstance(row, dict) and isinstance(row.get("candidate"), str), f"{where} has no candidate")
    _require(row.get("lost") is None or isinstance(row["lost"], str), f"{where}.lost is no text")
    for name, value in row.items():
        if name in ("trained", "promoted"):
            check_numbers(value, f"{where}.{name}")
        elif name in _NUMBERS or name.endswith((*_ENDS, "_short")):
            number = value is None or (type(value) in (int, float) and is_finite(value))
            _require(number, f"{where}.{name} is no finite number")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Damaged(message)


def _search(
    path: Path, content: Mapping[str, Any], sections: Sequence[Section], records: Mapping[str, Record]
) -> dict[str, Any]:
    name, headline = path.parent.parent.name, content["headline"]
    own = [record for record in records.values() if record.name == name and headline in record.metrics]
    directions = {record.headline: record.direction for record in own}
    better = content.get("direction") or directions.get(headline, "min")
    return {
        "name": name,
        "message": "",
        "seconds": content["seconds"],
        "headline": headline,
        "headlineTitle": title_of(headline, {}),
        "better": better,
        "off": content.get("composed_minus_measured", {}),
        "costs": {
            name: {"title": title_of(name, {}), "unit": _UNITS.get(name, name.replace("_", " "))}
            for budget in content["budgets"]
            for name in budget["limits"]
        },
        "budgets": [
            _budget(budget, content, better, own, sections)
            for budget in sorted(content["budgets"], key=lambda budget: sorted(budget["limits"].items()))
        ],
    }


def _budget(
    budget: Mapping[str, Any],
    content: Mapping[str, Any],
    better: str,
    own: Sequence[Record],
    sections: Sequence[Section],
) -> dict[str, Any]:
    headline, limits, sign = content["headline"], budget["limits"], 1 if better == "min" else -1
    trained = [row["trained"] for row in budget["candidates"] if headline in row.get("trained", {})]
    best: Mapping[str, float] = min(trained, key=lambda figures: sign * figures[headline], default={})
    reference = _place(best, own, sections)
    rows = []
    for row in budget["candidates"]:
        short, full = row.get(f"{headline}_short"), row.get("promoted") or {}
        tried = _place(row.get("trained", {}), own, sections)
        rows.append(
            {
                "label": row["candidate"],
                **_shape(row["candidate"], content.get("blocks", {})),
                "evolved": row.get("found_by") == "evolution",
                "added": row.get("added_nats"),
                "whole": row.get("whole_nats"),
                "costs": {name: [row.get(f"{name}{end}") for end in _ENDS] for name in limits},
                "short": short,
                "shortMinus": _minus(tried, reference, headline, sections),
                "full": full.get(headline),
                **_final(_place(full, own, sections), sections),
                "lost": row.get("lost"),
                "fate": _fate(row, limits, short),
            }
        )
    return {"limits": limits, "candidates": rows}


def _fate(row: Mapping[str, Any], limits: Mapping[str, float], short: float | None) -> str:
    """How far a candidate came: ``promoted``, ``failed``, ``trained``, ``over`` a budget, or only ``scored``."""
    measured = {name: row.get(f"{name}_measured") for name in limits}
    if row.get("promoted"):
        return "promoted"
    if row.get("failed"):
        return "failed"
    if short is not None:
        return "trained"
    over = any(value is not None and value > limits[name] for name, value in measured.items())
    return "over" if over else "scored"


def _shape(label: str, blocks: Mapping[str, float]) -> dict[str, Any]:
    """Stacks of a candidate, a letter for each block of the dense model and a dot for a removed one, and its widths."""
    parts = [(part, _STACK.fullmatch(part)) for part in label.split(", ")]
    depth = {stack: min(int(units), _MOST_BLOCKS) for stack, units in blocks.items()}
    return {
        "stacks": [[match[1], match[2].ljust(depth.get(match[1], 0), ".")] for _, match in parts if match],
        "widths": ", ".join(part for part, match in parts if not match),
    }


def _place(figures: Mapping[str, float], own: Sequence[Record], sections: Sequence[Section]) -> tuple[int, int] | None:
    """Indices of the section and the point of the last stage that has these figures; ``None`` where there is none."""
    if not figures:
        return None
    keys = {record.key for record in own if all(record.metrics.get(name) == one for name, one in figures.items())}
    for index, section in enumerate(sections):
        for place, point in enumerate(section.points):
            if keys & set(point.keys):
                return index, place
    return None


def _minus(
    place: tuple[int, int] | None, other: tuple[int, int] | None, metric: str, sections: Sequence[Section]
) -> list[float | str] | None:
    """A metric of a point less that of another: the difference, its interval, and what it rests on."""
    if place is None or other is None or place == other or place[0] != other[0]:
        return None
    found = sections[place[0]].comparisons.compare(place[1], other[1], metric)
    if found is None:
        return None
    return [*(float(f"{one:.4g}") for one in (found.difference, found.low, found.high)), found.basis]


def _final(place: tuple[int, int] | None, sections: Sequence[Section]) -> dict[str, Any]:
    """Where a promoted candidate is on the front, and how near it is to the dense model, with an interval."""
    if place is None:
        return {"point": None, "quality": None}
    section = sections[place[0]]
    point = section.points[place[1]]
    found: dict[str, Any] = {
        "point": {"section": place[0], "id": " ".join(point.keys)},
        "quality": None,
    }
    if section.quality in point.figures:
        interval = section.comparisons.interval(place[1], section.quality)
        ends = [interval.low, interval.high] if interval is not None and interval.low < interval.high else []
        found["quality"] = {"name": section.quality, "figure": [point.value(section.quality), *ends]}
    return found


def faults(runs: Path) -> list[str]:
    """A message for each damaged file of a search below a folder of runs."""
    messages = []
    for path in files(runs):
        try:
            read(path)
        except Damaged as error:
            messages.append(str(error))
    return messages
