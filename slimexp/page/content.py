"""What the page shows, as plain JSON: all figures of all points, so that the reader can ask for other axes."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from slimexp.analysis.lineage import lineage
from slimexp.analysis.point import Point
from slimexp.analysis.section import Section, better
from slimexp.analysis.style import LOG_FROM, NAMES, kind_of, kinds_of
from slimexp.analysis.uncertainty import DECIDED
from slimexp.file import regular
from slimexp.page.curves import curves
from slimexp.page.layers import bits, layers, sensitivity
from slimexp.record.record import Record, read

# Columns of the table, in this order, where a section has them. The headline comes first.
_MAIN = (
    "kept",
    "disk_mb",
    "size_ratio",
    "params_live",
    "sparsity",
    "bits_per_weight",
    "latency_p50_ms",
    "latency_ratio",
)
_SHARES = frozenset({"kept", "sparsity"})  # shown in per cent
_SHARES_OF_STAGES = ("_share", "_sparsity")  # quantize_share: of the parameters
_SHORT = {
    "kept": "kept",
    "disk_mb": "disk MB",
    "size_ratio": "size x dense",
    "params_live": "parameters",
    "bits_per_weight": "bits",
    "latency_p50_ms": "latency ms",
    "latency_ratio": "latency x dense",
}
_ERROR = "_stderr"
_ENDS = ("_low", "_high")  # of the interval that a measure gives with a figure


def content(found: Sequence[Section], runs: Path, folder: Path | None) -> dict[str, Any]:
    """Everything the page shows.

    Args:
        found: Sections of the records in ``runs``.
        runs: The folder or file they were read from.
        folder: Where the page will lie, for links to artifacts; ``None`` for a served page, which has none.
    """
    records = {record.key: record for record in read(runs, quiet=True)}  # the reader of the sections has warned
    shown = {key for section in found for point in section.points for key in point.keys} & records.keys()
    root = runs if runs.is_dir() else runs.parent
    return {
        "live": folder is None,
        "message": "",
        "records": len(shown),
        "newest": max((records[key].time for key in shown), default=""),
        "select": f"python -m slimexp.select {shlex.quote(str(runs))}",
        "logFrom": LOG_FROM,
        "sections": [_section(section, records, root, folder) for section in found],
        "curves": curves(
            {
                record.key: path
                for section in found
                for point in section.points
                for record in _lineage(point, records)
                if record.curves and (path := regular.within(root, record.curves))
            }
        ),
    }


def nothing(message: str) -> dict[str, Any]:
    """What a served page shows while there is nothing to show."""
    about = {"live": True, "message": message, "records": 0, "newest": "", "select": "", "logFrom": LOG_FROM}
    return {**about, "sections": [], "curves": {}}


def _section(section: Section, records: Mapping[str, Record], root: Path, folder: Path | None) -> dict[str, Any]:
    own = [records[key] for point in section.points for key in point.keys if key in records]
    guesses = [record.trivial for record in own]
    names = _metrics(section)
    return {
        "title": section.title,
        "headline": section.headline,
        "direction": section.direction,
        "decided": DECIDED if section.z is None else None,  # probabilities are of all axes that were asked for
        "x": section.x,
        "y": section.y,
        "guess": section.trivial if section.trivial is not None else sum(guesses) / len(guesses) if guesses else None,
        "hypervolume": section.hypervolume,
        "hypervolumeHistory": section.hypervolume_history,
        "kinds": kinds_of(section),
        "metrics": [_metric(name, section, own) for name in names],
        "layers": (names_of_layers := layers(section)),
        "budgets": _budgets(section),
        "environments": section.environments,
        "published": [_published(point, names) for point in section.published],
        "points": [
            {
                **_point(point, names, records, root, folder),
                "beaten": probability,
                "sensitivity": sensitivity(point, names_of_layers, records),
                "bits": bits(point, names_of_layers, records),
            }
            for point, probability in zip(section.points, section.probabilities, strict=True)
        ],
    }


def _metrics(section: Section) -> list[str]:
    """Metrics of a section, the telling ones first; ends of intervals and errors are shown with their figure."""
    held = dict.fromkeys(name for point in section.points for name in point.figures if _ERROR not in name)
    first = [name for name in dict.fromkeys((section.headline, *_MAIN, section.x, section.y)) if name in held]
    ends = {name for name in held for end in _ENDS if name.endswith(end) and name.removesuffix(end) in held}
    return list(dict.fromkeys([*first, *(name for name in held if name not in ends)]))


def _metric(name: str, section: Section, records: Sequence[Record]) -> dict[str, Any]:
    ways = dict(zip((section.x, section.y), section.directions, strict=True))
    known = name in _SHORT or name in _SHARES or name in ways or any(name in record.directions for record in records)
    return {
        "name": name,
        "label": NAMES.get(name, name.replace("_", " ")),
        "short": _SHORT.get(name, name.replace("_", " ").replace(" mb", " MB")),
        "better": ways.get(name) or better(name, records),
        "known": known,  # whether a record says which way is better
        "share": name in _SHARES or name.endswith(_SHARES_OF_STAGES),
        "main": name in (section.headline, *_MAIN, section.x, section.y),
    }


def _budgets(section: Section) -> list[dict[str, Any]]:
    """What may be limited: size, latency and quality, where points differ in it.

    Milliseconds of different machines are not comparable, ratios to the dense model are.
    """
    machines = {repr(environment["hardware"]) for environment in section.environments}
    latency = "latency_p50_ms" if len(machines) == 1 else "latency_ratio"
    sides = {"disk_mb": "max", latency: "max", section.headline: "max" if section.direction == "min" else "min"}
    values = {name: {point.figures[name].mean for point in section.points if name in point.figures} for name in sides}
    return [{"metric": name, "side": side} for name, side in sides.items() if len(values[name]) > 1]


def _point(
    point: Point, names: Sequence[str], records: Mapping[str, Record], root: Path, folder: Path | None
) -> dict[str, Any]:
    own = [records[key] for key in point.keys if key in records]
    return {
        "id": " ".join(point.keys) or point.label,
        "label": point.label,
        "kind": "" if point.dense else kind_of(point),
        "dense": point.dense,
        "slower": point.slower,
        "noisy": point.noisy,
        "unshrunk": point.unshrunk,
        "seeds": point.seeds,
        "runs": point.runs,
        "figures": {name: _figure(point, name) for name in names if name in point.figures},
        "artifacts": [_artifact(artifact, root, folder) for artifact in point.artifacts],
        "curves": [
            {"key": record.key, "stage": record.stage, "seed": record.seed}
            for record in _lineage(point, records)
            if record.curves
        ],
        "overrides": shlex.join(own[-1].overrides) if own else "",
        "kernels": sorted({record.kernel for record in own}),
        "seconds": [round(record.seconds.get("train", 0.0), 1) for record in own],
    }


def _figure(point: Point, name: str) -> list[float]:
    """Mean, and the ends of its error bar where it has one.

    Over seeds their range; of a measure with an interval that, over seeds the widest; else one standard error.
    """
    spread = point.figures[name]
    low, high = (point.figures.get(f"{name}{end}", spread) for end in _ENDS)
    ends = [min(low.low, spread.low), max(high.high, spread.high)]
    if ends[0] == ends[1] and spread.error:
        ends = [spread.mean - spread.error, spread.mean + spread.error]
    return [spread.mean, *ends] if ends[0] < ends[1] else [spread.mean]


def _published(point: Point, names: Sequence[str]) -> dict[str, Any]:
    return {"label": point.label, "figures": {name: _figure(point, name) for name in names if name in point.figures}}


def _lineage(point: Point, records: Mapping[str, Record]) -> list[Record]:
    """Records of the stages that led to a point, first stage first, of each of its seeds."""
    found: dict[str, Record] = {}
    for key in point.keys:
        if key in records:
            found |= {one.key: one for one in lineage(records[key], records)}
    return list(found.values())


def _artifact(artifact: str, root: Path, folder: Path | None) -> dict[str, str | None]:
    """A model folder as a path to type and, where the page can link to it, an address relative to the page.

    To a folder outside the runs (a model that was evaluated) there is no link.
    """
    path = root / artifact
    link = folder is not None and (inner := regular.within(root, artifact)) is not None and inner.is_dir()
    return {"path": str(path), "href": quote(os.path.relpath(path, folder)) + "/" if link else None}
