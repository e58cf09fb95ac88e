"""Content of the page as plain JSON: all figures of all points, so that a reader can choose other axes."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from slimexp.analysis.lineage import lineage
from slimexp.analysis.point import Point
from slimexp.analysis.section import Section, better
from slimexp.analysis.style import DIFFERENCES, LOG_FROM, difference_of, kind_of, kinds_of, title_of, words_on_quality
from slimexp.analysis.uncertainty import DECIDED
from slimexp.file import regular
from slimexp.page.curves import curves
from slimexp.page.layers import bits, layers, sensitivity
from slimexp.page.search import searches
from slimexp.record.exported import DIRECTIONS, THREADS, Exported, exported, speeds
from slimexp.record.figures import KEPT
from slimexp.record.record import Record, read
from slimexp.record.schema import MINUS_ARM, STDERR

# Columns of the table after quality, in this order, where a section has them.
_MAIN = (
    "disk_mb",
    "size_ratio",
    "params_live",
    "sparsity",
    "bits_per_weight",
    "latency_p50_ms",
    "latency_ratio",
)
_SHARES = frozenset({"kept", "sparsity"})  # shown in per cent
_SHARES_OF_STAGES = ("_share", "_sparsity")  # such as quantize_share, a share of the parameters
_SHORT = {
    "kept": "kept",
    "perplexity_ratio": "perplexity x dense",
    "bits_per_byte_ratio": "bits per byte x dense",
    "disk_mb": "disk MB",
    "size_ratio": "size x dense",
    "params_live": "parameters",
    "bits_per_weight": "bits",
    "latency_p50_ms": "latency ms",
    "latency_ratio": "latency x dense",
}
_ALL_PAIRS = 60  # points of which all pairs are on the page
_SIDES = {"min": "max", "max": "min"}  # which direction is better -> the side of a limit
_ENDS = ("_low", "_high")  # of the interval that a measure gives together with a figure


def content(sections: Sequence[Section], runs: Path, folder: Path | None) -> dict[str, Any]:
    """Everything the page shows.

    Args:
        sections: Sections of the records in ``runs``.
        runs: The folder or file that the records were read from.
        folder: Folder of the page, for relative links to artifacts; ``None`` for a served page, which has no links.
    """
    records = {record.key: record for record in read(runs, quiet=True)}  # the reader of the sections has warned
    shown = {key for section in sections for point in section.points for key in point.keys} & records.keys()
    root = runs if runs.is_dir() else runs.parent
    return {
        "live": folder is None,
        "message": "",
        "records": len(shown),
        "newest": max((records[key].time for key in shown), default=""),
        "select": f"python -m slimexp.select {shlex.quote(str(runs))}",
        "logFrom": LOG_FROM,
        "searches": searches(runs, sections, records),
        "sections": [_section(section, records, root, folder) for section in sections],
        "curves": curves(
            {
                record.key: path
                for section in sections
                for point in section.points
                for record in _lineage(point, records)
                if record.curves and (path := regular.within(root, record.curves))
            }
        ),
    }


def nothing(message: str) -> dict[str, Any]:
    """Content of a served page without sections, which shows ``message`` alone."""
    about = {"live": True, "message": message, "records": 0, "newest": "", "select": "", "logFrom": LOG_FROM}
    return {**about, "searches": [], "sections": [], "curves": {}}


def _section(section: Section, records: Mapping[str, Record], root: Path, folder: Path | None) -> dict[str, Any]:
    own = [records[key] for point in section.points for key in point.keys if key in records]
    names, minus, exports = _metrics(section), _differences(section), exported(section.metrics)
    return {
        "title": section.title,
        "headline": section.headline,
        "direction": section.direction,
        "decided": DECIDED if section.z is None else None,  # probabilities are of all axes, and the page shows two
        "x": section.x,
        "y": section.y,
        "quality": section.quality,
        "guess": section.guess,  # what a point must be better than to be on a front
        "guessing": section.quality == KEPT,  # whether the guess is a baseline to show
        "words": [f"{one[0].upper()}{one[1:]}" for one in words_on_quality(section)],
        "hypervolume": section.hypervolume,
        "hypervolumeHistory": section.hypervolume_history,
        "kinds": kinds_of(section),
        "metrics": [_metric(name, section, own, exports) for name in names],
        "layers": (names_of_layers := layers(section)),
        "budgets": _budgets(section),
        "environments": section.environments,
        "published": [_published(point, names) for point in section.published],
        "points": [
            {
                **_point(point, records, root, folder),
                "figures": _figures(section, index, names),
                "minus": minus[index],
                "beaten": probability,
                "sensitivity": sensitivity(point, names_of_layers, records),
                "bits": bits(point, names_of_layers, records),
            }
            for index, (point, probability) in enumerate(zip(section.points, section.probabilities, strict=True))
        ],
    }


def _metrics(section: Section) -> list[str]:
    """Metrics of a section, those of the table first; ends of intervals and errors are shown with their figure."""
    measured = dict.fromkeys(name for name in section.metrics if STDERR not in name)
    if KEPT not in (section.quality, section.x, section.y):
        measured.pop(KEPT, None)
    first = [name for name in dict.fromkeys((*_quality(section), *_MAIN, section.x, section.y)) if name in measured]
    ends = {name for name in measured for end in _ENDS if name.endswith(end) and name.removesuffix(end) in measured}
    return list(dict.fromkeys([*first, *(name for name in measured if name not in ends)]))


def _metric(name: str, section: Section, records: Sequence[Record], exports: Mapping[str, Exported]) -> dict[str, Any]:
    directions = dict(zip((section.x, section.y), section.directions, strict=True))
    is_known = (
        name in _SHORT or name in _SHARES or name in directions or any(name in record.directions for record in records)
    )
    return {
        "name": name,
        "label": title_of(name, exports),
        "short": _short(name),
        "better": directions.get(name) or better(name, records),
        "known": is_known,  # whether it is known which direction is better
        "difference": difference_of(name) is not None,  # which 0 is between better and worse of
        "share": name in _SHARES or name.endswith(_SHARES_OF_STAGES),
        "main": name in (*_quality(section), *_MAIN, section.x, section.y, *_speeds(section)),
        "engine": name in exports,  # whether it is of an export
    }


def _short(name: str) -> str:
    """Words for a metric at the head of a column."""
    if (end := difference_of(name)) is not None:
        return f"{_short(name.removesuffix(end))} minus {DIFFERENCES[end][0]}"
    return _SHORT.get(name, name.replace("_", " ").replace(" mb", " MB"))


def _quality(section: Section) -> list[str]:
    """Metrics of quality: the headline, how near it is to the dense model's, and what it is less that of an arm."""
    return [section.headline, section.quality, *(section.headline + end for end in MINUS_ARM.values())]


def _budgets(section: Section) -> list[dict[str, Any]]:
    """Metrics that the page has sliders for: size, latency, speed in other engines and quality, where points differ.

    Ratios to the dense model are comparable between machines, and milliseconds are not.
    """
    latency = "latency_p50_ms" if _on_one_machine(section) else "latency_ratio"
    quality = section.headline if section.quality == KEPT else section.quality
    engines = {name: _SIDES[DIRECTIONS[of.figure]] for name, of in _speeds(section).items()}
    sides = {"disk_mb": "max", latency: "max", **engines, quality: _SIDES[section.direction]}
    return [{"metric": name, "side": side} for name, side in sides.items() if len(_values(section, name)) > 1]


def _on_one_machine(section: Section) -> bool:
    return len({repr(environment["hardware"]) for environment in section.environments}) == 1


def _speeds(section: Section) -> dict[str, Exported]:
    """How fast each engine is, where all exports to it were timed on one machine and as many threads."""
    exports = exported(section.metrics) if _on_one_machine(section) else {}
    of_each = {name: exports[name] for name in speeds(exports)}
    return {name: of for name, of in of_each.items() if len(_values(section, f"{of.format}_{THREADS}")) == 1}


def _values(section: Section, metric: str) -> set[float]:
    return {point.figures[metric].mean for point in section.points if metric in point.figures}


def _point(point: Point, records: Mapping[str, Record], root: Path, folder: Path | None) -> dict[str, Any]:
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


def _figures(section: Section, index: int, names: Sequence[str]) -> dict[str, list[float]]:
    """Metric -> ``_figure``; of quality the interval beside the dense model on the same rows, where there is one."""
    point = section.points[index]
    shown = {name: _figure(point, name) for name in names if name in point.figures}
    interval = section.comparisons.interval(index, section.quality)
    if interval is not None and interval.basis != "unpaired" and interval.low < interval.high:
        shown[section.quality] = [point.value(section.quality), interval.low, interval.high]
    return shown


def _differences(section: Section) -> list[dict[int, list[float | str]]]:
    """For each point, index of an earlier point -> the headline less that one's, its interval and what it rests on.

    Of many points those that may be chosen for something are compared: the dense models, the front, and what may belong
    to it.
    """
    points = list(range(len(section.points)))
    if len(points) > _ALL_PAIRS:
        points = [i for i in points if section.points[i].dense or i in section.front or section.undecided(i)]
    pairs: list[dict[int, list[float | str]]] = [{} for _ in section.points]
    for place, own in enumerate(points):
        for other in points[:place]:
            if (found := section.comparisons.compare(own, other, section.headline)) is not None:
                ends = (float(f"{one:.4g}") for one in (found.difference, found.low, found.high))
                pairs[own][other] = [*ends, found.basis]
    return pairs


def _figure(point: Point, name: str) -> list[float]:
    """Mean, and the ends of its error bar where it has one.

    The bar is the range over seeds; for a measure with an interval the widest interval; else one standard error.
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
    ancestors: dict[str, Record] = {}
    for key in point.keys:
        if key in records:
            ancestors |= {record.key: record for record in lineage(records[key], records)}
    return list(ancestors.values())


def _artifact(artifact: str, root: Path, folder: Path | None) -> dict[str, str | None]:
    """A model folder as a path to copy and, where the page can link to it, as an address relative to the page.

    There is no link to a folder outside the runs, such as that of a model that was evaluated.
    """
    path = root / artifact
    link = folder is not None and (inner := regular.within(root, artifact)) is not None and inner.is_dir()
    return {"path": str(path), "href": quote(os.path.relpath(path, folder)) + "/" if link else None}
