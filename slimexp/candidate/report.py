"""The result of a search as a file: budgets, candidates, why each lost, and how well composed costs predicted."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimexp.candidate.choice import Candidate
from slimexp.candidate.found import Found
from slimexp.candidate.search import Search
from slimexp.data.base import Direction
from slimexp.file import integrity
from slimexp.file.bounded import read_object
from slimexp.record.lock import held


def write(work: Search, found: Sequence[Found], *, seconds: float) -> str:
    """Write ``search.json`` into the search's folder; returns a line that names it.

    Budgets of earlier searches stay in it, and of the same budget what was trained, if now nothing was.
    """
    path = work.folder / "search.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    errors = composition_errors(found)
    content: dict[str, Any] = {
        "seconds": seconds,
        "headline": work.parts.corpus.headline,
        "direction": work.parts.corpus.direction,
        "blocks": dict(work.choices.stacks),
        "composed_minus_measured": errors,
        "budgets": [_budget(one, work.parts.corpus.headline) for one in found],
    }
    with held(path.with_name(f".{path.name}.lock"), f"another search writes {path.name}"):
        content["budgets"] = _with_earlier(path, content)
        integrity.write(path, json.dumps(content, indent=1) + "\n")
    known = ", ".join(f"{name} by {share:.1%}" for name, share in errors.items())
    return f"recorded in {path}" + (f"; composed costs are off by a median of: {known}" if known else "")


def _with_earlier(path: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The budgets of a search, and those in the file, unless it is damaged or another model's."""
    now: list[dict[str, Any]] = content["budgets"]
    try:
        before = read_object(path, way_out="it is made anew") if path.exists() else {}
    except ValueError:
        return now
    earlier = before.get("budgets")
    if before.get("blocks") != content["blocks"] or not isinstance(earlier, list):
        return now
    of = {_name(one): one for one in earlier if _is_whole(one)}
    kept = []
    for one in now:
        same = of.pop(_name(one), None)
        kept.append(one if same is None or _is_trained(one) or not _is_trained(same) else same)
    return [*kept, *of.values()]


def _name(budget: Mapping[str, Any]) -> str:
    return json.dumps(budget["limits"], sort_keys=True)


def _is_whole(budget: Any) -> bool:
    """Whether a budget of a file can be read: limits, and candidates that are objects."""
    rows = budget.get("candidates") if isinstance(budget, dict) and "limits" in budget else None
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _is_trained(budget: Mapping[str, Any]) -> bool:
    return any("trained" in row or "promoted" in row for row in budget["candidates"])


def answer(found: Found, headline: str, direction: Direction) -> Candidate:
    """The candidate that a budget ends with.

    Of the promoted ones the best after the short training, on validation text: what the full training is graded on
    chooses nothing. Where none is promoted, and among equals, the one of least whole loss that was measured to fit.

    Args:
        found: What was found for the budget.
        headline: Figure that trainings are compared by.
        direction: Whether a smaller (``min``) or larger (``max``) one is better.
    """
    sign = 1 if direction == "min" else -1

    def rank(candidate: Candidate) -> tuple[float, float]:
        short = found.trained.get(candidate, {}).get(headline)
        return math.inf if short is None else sign * short, found.losses[candidate]

    return min(found.promoted or (one for one in found.costs if one in found.losses), key=rank)


def composition_errors(found: Sequence[Found]) -> dict[str, float]:
    """Budget -> median over candidates of ``|composed - measured| / measured``."""
    errors: dict[str, list[float]] = {}
    for one in found:
        for costs in one.costs.values():
            for name, (composed, measured) in costs.items():
                errors.setdefault(name, []).append(abs(composed - measured) / measured)
    return {name: statistics.median(values) for name, values in errors.items() if name != "parameters"}


def _budget(one: Found, headline: str) -> dict[str, Any]:
    rows = []
    for candidate in [*one.losses, *one.over]:
        row: dict[str, Any] = {
            "candidate": str(candidate),
            "found_by": "solver" if candidate in one.solved else "evolution",
            "added_nats": one.added[candidate],
            "whole_nats": one.losses[candidate] if candidate in one.losses else one.over[candidate],
        }
        row |= {f"{name}_composed": cost for name, cost in one.composed[candidate].items()}
        row |= {f"{name}_measured": measured for name, (_, measured) in one.costs.get(candidate, {}).items()}
        if candidate in one.trained:
            row |= {f"{headline}_short": one.trained[candidate][headline], "trained": one.trained[candidate]}
        if candidate in one.promoted:
            row["promoted"] = one.promoted[candidate]
        if candidate in one.failed:
            row["failed"] = one.failed[candidate]
        rows.append(row | {"lost": one.why_lost(candidate)})
    return {"limits": one.limits, "candidates": rows}
