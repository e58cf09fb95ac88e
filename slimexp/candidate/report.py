"""The result of a search as a file: budgets, candidates, why each lost, and how well composed costs foretold."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from slimexp.candidate.search import Found, Search
from slimexp.file import integrity


def write(work: Search, found: Sequence[Found], *, seconds: float) -> str:
    """Write ``search.json`` into the search's folder; returns a line that names it."""
    path = work.folder / "search.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    errors = composition_errors(found)
    content = {
        "seconds": seconds,
        "headline": work.parts.corpus.headline,
        "composed_minus_measured": errors,
        "budgets": [_budget(one, work.parts.corpus.headline) for one in found],
    }
    integrity.write(path, json.dumps(content, indent=1) + "\n")
    known = ", ".join(f"{name} by {share:.1%}" for name, share in errors.items())
    return f"recorded in {path}" + (f"; composed costs are off by a median of: {known}" if known else "")


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
    for candidate in dict.fromkeys([*one.losses, *one.costs]):
        row: dict[str, Any] = {"candidate": str(candidate), "whole_nats": one.losses.get(candidate)}
        if candidate in one.added:
            row["added_nats"] = one.added[candidate]
        for name, (composed, measured) in one.costs.get(candidate, {}).items():
            row |= {f"{name}_composed": composed, f"{name}_measured": measured}
        if candidate in one.trained:
            row[f"{headline}_short"] = one.trained[candidate][headline]
        if candidate in one.promoted:
            row["promoted"] = one.promoted[candidate]
        row["lost"] = _lost(candidate, one)
        rows.append(row)
    return {"limits": one.limits, "candidates": rows}


def _lost(candidate: Any, one: Found) -> str | None:
    """Why a candidate was not promoted; ``None`` where it was."""
    if candidate in one.promoted:
        return None
    if candidate not in one.losses:
        return "over the budget as measured"
    if not one.promoted:
        return "nothing was trained"
    return "worse after a short training" if candidate in one.trained else "worse as a whole before training"
