"""A section as a table: aligned text for a terminal, CSV, and JSON."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from slimexp.analysis.comparison import Comparison
from slimexp.analysis.point import Point, Spread
from slimexp.analysis.section import Section
from slimexp.analysis.style import DIFFERENCES, number, words_on_quality
from slimexp.analysis.uncertainty import DECIDED
from slimexp.record.figures import BITS_PER_BYTE, KEPT, NOISY, PERPLEXITY
from slimexp.record.schema import DIFFERENCE, MINUS_ARM

_QUALITY = {"kept": "kept", "perplexity_ratio": "x dense", "bits_per_byte_ratio": "x dense"}  # beside the headline
# End of the name of a paired difference -> title of its column, beside which the metric stands where there are several
_MINUS = {end: f"minus {words}" for end, (words, _) in DIFFERENCES.items()}
_COLUMNS = {  # metric -> title of its column, in every table after quality
    "disk_mb": "disk MB",
    "size_ratio": "size x dense",
    "params_live": "params",
    "sparsity": "sparsity",
    "bits_per_weight": "bits",
    "latency_ratio": "latency x dense",
}


def table(section: Section) -> str:
    """The section as aligned text, followed by the meaning of its marks."""
    columns = _columns(section)
    head = ["", *columns, "dominated"]
    rows = [
        [_mark(section, index), *_cells(section, point, index), _percent(section.probabilities[index])]
        for index, point in enumerate(section.points)
    ]
    if section.trivial is not None:
        guess = [number(section.trivial), *(["0 %"] if _has_quality(section) else [])]
        blank = [""] * (len(columns) - 1 - len(guess))
        rows.append(["", "no model (best trivial guess)", "", *guess, *blank])
    rows += [["☆", *_cells(section, point, None), ""] for point in section.published]
    held = [0, 1, *(column for column in range(2, len(head)) if any(row[column] for row in rows))]
    head, *rows = ([row[column] for column in held] for row in (head, *rows))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [f"{section.title}: {section.headline}"]
    for row in [head, *rows]:
        aligned = [row[column].ljust(widths[column]) for column in (0, 1)]
        aligned += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join([*lines, *_notes(section)])


def _notes(section: Section) -> Iterator[str]:
    """Meanings of the marks that the table of this section has, a line each."""
    better = {"min": "lower is better", "max": "higher is better"}
    *first, last = (f"{name} ({better[direction]})" for name, direction in section.axes.items())
    yield f"* on the front of {', '.join(first)} and {last}"
    yield from words_on_quality(section)
    yield from _doubts(section)
    if any(point.slower for point in section.points):
        yield "! slower than dense"
    if any(point.unshrunk for point in section.points):
        yield "z 0 % smaller: its zeros are stored, and no kernel here skips them"
    if any(point.noisy for point in section.points):
        yield NOISY
    if any(len(point.seeds) > 1 for point in section.points):
        yield "over several seeds: mean [lowest, highest]; latency: [95 % interval, the widest]"
    if absent := sum(not section.drawn(index) for index in range(len(section.points))):
        yield f"{absent} not drawn: {section.x} or {section.y} was not measured"
    if section.published:
        yield "☆ published by others, see --reference: on no front"
    if absent := sum(not section.drawable(point) for point in section.published):
        yield f"{absent} ☆ not drawn: {section.x} or {section.y} was not given"
    if section.hypervolume is not None:
        yield f"the front covers {section.hypervolume:.3f} of size x quality (1: dense quality for no bytes)"
    if section.z is not None and section.corner is not None and section.volume is not None:
        corner = ", ".join(
            f"{name} {number(end)}" for name, end in zip(section.volume_axes, section.corner, strict=True)
        )
        yield f"hypervolume of the three: {section.volume:.3f}, in units of the worst that counts ({corner})"


def _doubts(section: Section) -> Iterator[str]:
    """How sure it is which points are dominated, a line for each reason to doubt it."""
    shown = [point for index, point in enumerate(section.points) if section.drawn(index)]
    if _compared(section, DIFFERENCE):
        yield (
            "minus dense: difference from the dense model with its 95 % interval over rows and, of several, seeds; "
            "= where that holds 0: not separable from dense; u where they have no rows in common: unpaired"
        )
    if _has_quality(section) and any(_ends_of_quality(section, index) for index in range(len(section.points))):
        yield f"{_QUALITY[section.quality]}: [95 % interval, the dense model graded on the same rows]"
    if any(_compared(section, end) for end in MINUS_ARM.values()):
        yield (
            "minus no teacher, minus no training: the same from that student trained on the text alone, and from the "
            "one that was cut and not trained; of several seeds the mean, and the lowest and highest end"
        )
    if any(len(point.seeds) == 1 and point.error(section.headline) > 0 for point in shown):
        yield "±: one standard error over test rows; one seed"
    if any(map(section.undecided, range(len(section.points)))):
        low, high = 100 * DECIDED, 100 * (1 - DECIDED)
        yield f"? not separable: dominated with a probability between {low:.0f} and {high:.0f} %"
    yield from filter(None, (_pairing(section, metric) for metric in section.axes))
    unknown = [metric for metric in section.axes if any(math.isnan(point.error(metric)) for point in shown)]
    if unknown:
        count = sum(any(math.isnan(point.error(metric)) for metric in unknown) for point in shown)
        yield (
            f"one seed, no error known: {' and '.join(unknown)} of {count} of {len(shown)} points, so whether "
            "these, and points that they might dominate, are separable is not known"
        )


def _pairing(section: Section, metric: str) -> str | None:
    """How differences of points in a metric are judged; ``None`` where there is one point, or nothing to say."""
    counts = section.comparisons.bases(metric)
    ways = {
        "rows": "from their scores on the same test rows, drawn again many times, and from the spread over seeds",
        "dense": "from their differences from the dense model on the same test rows",
        "unpaired": "each from its own error alone, although models err together on the same test rows",
    }
    found = [basis for basis in ways if basis in counts]
    if len(section.points) < 3 or not counts.keys() & {"rows", "dense"}:  # the dense model, and two to tell apart
        return None
    several = len(found) > 1
    told = "; ".join(ways[basis] + f" ({counts[basis]} of the points)" * several for basis in found)
    return f"whether two points differ in {metric} is judged {told}"


def _mark(section: Section, index: int) -> str:
    """Marks of a point: on the front, not separable, slower than dense, latency noisy."""
    return (
        ("*" if index in section.front else "")
        + ("?" if section.undecided(index) else "")
        + ("!" if section.points[index].slower else "")
        + ("~" if section.points[index].noisy else "")
    )


def _columns(section: Section) -> list[str]:
    quality = [_QUALITY[section.quality]] if _has_quality(section) else []
    compared = [_minus(section, metric, end) for metric, end in _differences(section)]
    return ["model", "seeds", section.headline, *quality, *compared, *_COLUMNS.values(), *_extra(section)]


def _compared(section: Section, end: str) -> list[str]:
    """Metrics of headline and axes that points were compared in with another model on the same questions.

    Args:
        section: The section.
        end: That of the names of the differences, which says what they are from.
    """
    names = dict.fromkeys((section.headline, *section.axes))
    if end == DIFFERENCE:
        return [name for name in names if any(_is_paired(section, index, name) for index in range(len(section.points)))]
    return [name for name in names if any(name + end in point.figures for point in section.points)]


def _is_paired(section: Section, index: int, metric: str) -> bool:
    """Whether a point was graded on the same rows as its dense model, in a metric that rows make."""
    beside = section.comparisons.beside_dense(index, metric)
    return beside is not None and beside.basis != "unpaired"


def _differences(section: Section) -> list[tuple[str, str]]:
    """Metric and end of the name of each difference that has a column."""
    return [(metric, end) for end in _MINUS for metric in _compared(section, end)]


def _minus(section: Section, metric: str, end: str) -> str:
    """Title of the column of a difference."""
    return f"{metric} {_MINUS[end]}" if len(_compared(section, end)) > 1 else _MINUS[end]


def _difference(section: Section, point: Point, index: int | None, metric: str, end: str) -> str:
    """Difference from another model with its interval; from an arm over several seeds the widest."""
    if end == DIFFERENCE:
        return "" if index is None else difference(section.comparisons.beside_dense(index, metric))
    paired = metric + end
    if paired not in point.figures:
        return ""
    low, high = point.figures[f"{paired}_low"].low, point.figures[f"{paired}_high"].high
    return f"{point.value(paired):+.3g} [{low:+.3g}, {high:+.3g}]" + ("=" if low <= 0 <= high else "")


def difference(of: Comparison | None) -> str:
    """A difference and its interval, ``+0.02 [+0.01, +0.03]``; ``=`` where that holds 0, ``u`` where it is unpaired."""
    if of is None:
        return ""
    marks = ("" if of.separable else "=") + ("u" if of.basis == "unpaired" else "")
    return f"{of.difference:+.3g} [{of.low:+.3g}, {of.high:+.3g}]{marks}"


def _has_quality(section: Section) -> bool:
    """Whether there is a column for how near models are to the dense one, which an untrained one gives no meaning."""
    return not section.untrained or any(section.quality in point.figures for point in section.points)


def _extra(section: Section) -> list[str]:
    """Metrics of the axes that no other column shows, and bits per byte beside a perplexity."""
    shown = (section.headline, section.quality, *_COLUMNS)
    beside = [BITS_PER_BYTE] if section.headline == PERPLEXITY else []
    return [name for name in dict.fromkeys((*section.axes, *beside)) if name not in shown]


def _cells(section: Section, point: Point, index: int | None) -> list[str]:
    """Cells of a point; ``index`` is ``None`` for one that was published, and compares with none."""
    figures = point.figures
    return [
        point.label,
        str(len(point.seeds) or ""),
        _spread(figures.get(section.headline)),
        *([_quality(section, point, index)] if _has_quality(section) else []),
        *(_difference(section, point, index, *of) for of in _differences(section)),
        number(point.value("disk_mb")),
        number(point.value("size_ratio")) + ("z" if point.unshrunk else ""),
        number(point.value("params_live")),
        _percent(figures["sparsity"].mean if "sparsity" in figures else None),
        number(point.value("bits_per_weight")),
        _latency(section, point),
        *[_spread(figures.get(name)) for name in _extra(section)],
    ]


def _quality(section: Section, point: Point, index: int | None) -> str:
    """How near a point is to the dense model: the share of its gain that is kept, or a multiple of its perplexity."""
    value, ends = point.value(section.quality), None if index is None else _ends_of_quality(section, index)
    if section.quality == KEPT:
        shown = _percent(None if math.isnan(value) else value)
        return f"{shown} [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]" if ends and shown else shown
    return f"{number(value)} [{number(ends[0])}, {number(ends[1])}]" if ends else number(value)


def _ends_of_quality(section: Section, index: int) -> tuple[float, float] | None:
    """Ends of the interval of ``quality`` of a point that was graded on the same rows as its dense model."""
    interval = section.comparisons.interval(index, section.quality)
    if interval is None or interval.basis == "unpaired" or interval.low == interval.high:
        return None
    return interval.low, interval.high


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _latency(section: Section, point: Point) -> str:
    """The ratio to the dense latency with its interval, over several seeds the widest one; empty without one."""
    if point.dense:
        return "1" if any("latency_ratio" in other.figures for other in section.points) else ""
    if "latency_ratio" not in point.figures:
        return ""
    ratio = point.figures["latency_ratio"]
    low, high = (point.figures.get(f"latency_ratio_{end}", ratio) for end in ("low", "high"))
    return _spread(Spread(ratio.mean, low.low, high.high))


def _spread(spread: Spread | None) -> str:
    """The mean with its range over seeds or, for one seed, its standard error."""
    if spread is None:
        return ""
    if spread.low < spread.high:
        return f"{number(spread.mean)} [{number(spread.low)}, {number(spread.high)}]"
    return number(spread.mean) + (f" ± {spread.error:.2g}" if spread.error else "")


def write_csv(sections: Sequence[Section], path: Path) -> None:
    """Write a row for each point of each section, with mean, lowest, highest and error of every metric."""
    metrics = sorted({name for section in sections for point in section.points for name in point.figures})
    facts = ["dense", "front", "slower", "dominated_probability", "time", "hypervolume_after"]
    columns = [f"{name}{end}" for name in metrics for end in ("", "_lowest", "_highest", "_error")]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["corpus", "headline", "label", "chain", "seeds", *facts, *columns])
        out.writerows(row for section in sections for row in _csv_rows(section, metrics))


def _csv_rows(section: Section, metrics: Sequence[str]) -> Iterator[list[object]]:
    # the history is empty where no size is known
    history = dict(zip(section.finished, section.hypervolume_history, strict=False))
    for index, point in enumerate(section.points):
        yield [
            *(section.title, section.headline, point.label, " ".join(point.chain), " ".join(map(str, point.seeds))),
            *(int(point.dense), int(index in section.front), int(point.slower)),
            *(section.probabilities[index], point.time, history.get(index)),
            *(value for name in metrics for value in _csv_values(point.figures.get(name))),
        ]


def _csv_values(spread: Spread | None) -> tuple[object, ...]:
    return ("",) * 4 if spread is None else (spread.mean, spread.low, spread.high, spread.error)


def write_json(sections: Sequence[Section], path: Path) -> None:
    """Write all fields of all sections, as a list of objects, and how their points compare with the dense model."""
    path.write_text(json.dumps([_json(section) for section in sections], indent=1, allow_nan=False) + "\n")


def _json(section: Section) -> dict[str, Any]:
    own = {one.name: getattr(section, one.name) for one in fields(section) if one.name != "comparisons"}
    own |= {name: [asdict(point) for point in own[name]] for name in ("points", "published")}
    places, comparisons = range(len(section.points)), section.comparisons
    beside = [comparisons.beside_dense(index, section.headline) for index in places]
    intervals = [comparisons.interval(index, section.quality) for index in places]
    return {
        **own,
        "finished": section.finished,
        "minus_dense": [of and asdict(of) for of in beside],
        "quality_interval": [of and of._asdict() for of in intervals],
    }
