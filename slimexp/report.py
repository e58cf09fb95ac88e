"""Rebuild table, Pareto front, plot and page from the records alone: ``python -m slimexp.report runs``."""

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from slimexp.analysis import published
from slimexp.analysis.plot import number, write_png
from slimexp.analysis.point import Point, Spread
from slimexp.analysis.section import X_AXES, Section, load
from slimexp.analysis.uncertainty import DECIDED
from slimexp.file import integrity
from slimexp.host import console
from slimexp.page import html, server
from slimexp.page.content import content

_COLUMNS = {  # metric -> its column, of every table; the headline stands before them
    "kept": "kept",
    "disk_mb": "disk MB",
    "size_ratio": "x dense",
    "params_live": "params",
    "sparsity": "sparsity",
    "bits_per_weight": "bits",
    "latency_ratio": "latency x dense",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 after one line of error."""
    with console.output(), console.interruptible():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = console.Parser("python -m slimexp.report", description=__doc__)
    parser.add_argument("runs", type=console.path, help="folder with records.jsonl somewhere below, or one such file")
    parser.add_argument("--x", metavar="METRIC", help=f"horizontal axis (default: {X_AXES[0]})")
    parser.add_argument("--y", metavar="METRIC", help="vertical axis (default: the headline of each corpus)")
    parser.add_argument("--z", metavar="METRIC", help="a third objective, for a front of three (default: none)")
    parser.add_argument("--reference", metavar="FILE", type=console.path, help=published.FORMAT)
    parser.add_argument("--out", metavar="DIR", type=console.path, help="where the files go (default: the runs folder)")
    parser.add_argument("--wandb", action="store_true", help="a W&B run per sweep with its front; offline if need be")
    parser.add_argument("--watch", action="store_true", help="serve the page to this machine, live, and write nothing")
    parser.add_argument("--port", metavar="N", type=int, help="of --watch (default: any that is free)")
    asked = parser.parse_args(arguments)
    if asked.port is not None and (asked.port not in server.PORTS or not asked.watch):
        parser.error(f"--port must be 0 to {server.PORTS[-1]} and go with --watch, got {asked.port}")
    if asked.watch and (asked.out or asked.wandb):
        parser.error("--watch writes nothing: leave out --out and --wandb")
    folder = asked.out or (asked.runs if asked.runs.is_dir() else asked.runs.parent)
    try:
        look = partial(load, asked.runs, x=asked.x, y=asked.y, z=asked.z, reference=asked.reference)
        if asked.watch:
            server.watch(asked.runs, look, reference=asked.reference, port=asked.port or 0)
            return 0
        found = look()
        files = write(found, folder, asked.runs)
    except (ValueError, OSError) as error:
        told = console.disk_fault(error, str(folder), setting="--out DIR") or error
        print(f"error: {console.printable(told)}", file=sys.stderr)
        return console.USER_ERROR
    print("\n\n".join(table(section) for section in found))
    print("\nwritten: " + ", ".join(map(str, files)))
    if asked.wandb:
        from slimexp.logger import wandb_report  # brings in Lightning

        wandb_report.publish(asked.runs, partial(write, runs=asked.runs))
    return 0


def write(found: Sequence[Section], folder: Path, runs: Path) -> list[Path]:
    """Write ``report.csv``, ``report.json``, ``pareto.png`` and ``pareto.html`` of ``runs``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        "report.csv": _write_csv,
        "report.json": _write_json,
        "pareto.png": write_png,
        "pareto.html": lambda found, path: path.write_text(html.render(content(found, runs, folder)), encoding="utf-8"),
    }
    for name, writer in writers.items():
        with integrity.aside(folder / name) as partial:
            writer(found, partial)
    return [folder / name for name in writers]


def table(section: Section) -> str:
    """The section as aligned text, with what its marks mean."""
    columns = _columns(section)
    head = ["", *columns, "dominated"]
    rows = [
        [_mark(section, index), *_cells(section, point), _percent(section.probabilities[index])]
        for index, point in enumerate(section.points)
    ]
    if section.trivial is not None:
        blank = [""] * (len(columns) - 3)
        rows.append(["", "no model (best trivial guess)", "", number(section.trivial), "0 %", *blank])
    rows += [["☆", *_cells(section, point), ""] for point in section.published]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [f"{section.title}: {section.headline}"]
    for row in [head, *rows]:
        aligned = [row[column].ljust(widths[column]) for column in (0, 1)]
        aligned += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join([*lines, *_notes(section)])


def _notes(section: Section) -> Iterator[str]:
    word = {"min": "lower is better", "max": "higher is better"}
    *first, last = (f"{name} ({word[way]})" for name, way in section.axes.items())
    yield f"* on the front of {', '.join(first)} and {last}"
    yield from _doubts(section)
    if any(point.slower for point in section.points):
        yield "! slower than dense"
    if any(point.unshrunk for point in section.points):
        yield "z 0 % smaller: its zeros are stored, and no kernel here skips them"
    if any(point.noisy for point in section.points):
        yield "~ latency is noisy: other processes took the cores, or the dense model's own times spread"
    if any(len(point.seeds) > 1 for point in section.points):
        yield "over several seeds: mean [lowest, highest]; latency: [95 % interval, the widest]"
    if absent := sum(not section.drawn(index) for index in range(len(section.points))):
        yield f"{absent} not drawn: {section.x} or {section.y} was not measured"
    if section.published:
        yield "☆ published by others, see --reference: on no front"
    if absent := sum(not section.drawable(point) for point in section.published):
        yield f"{absent} ☆ not drawn: {section.x} or {section.y} was not given"
    if section.cover is not None:
        yield f"the front covers {section.cover:.3f} of size x quality (1: dense quality for no bytes)"
    if section.z is not None and section.corner is not None:
        corner = ", ".join(f"{name} {number(end)}" for name, end in zip(section.axes, section.corner, strict=True))
        yield f"hypervolume of the three: {section.volume:.3f}, in units of the worst that counts ({corner})"


def _doubts(section: Section) -> Iterator[str]:
    """How sure the order of the points is."""
    shown = [point for index, point in enumerate(section.points) if section.drawn(index)]
    if any(len(point.seeds) == 1 and point.error(section.headline) > 0 for point in shown):
        yield "±: one standard error over test rows; one seed"
    if any(map(section.undecided, range(len(section.points)))):
        low, high = 100 * DECIDED, 100 * (1 - DECIDED)
        yield (
            f"? not separable: dominated with a probability between {low:.0f} and {high:.0f} %, "
            "if errors are normal and independent (on the same rows models err together, which this does not see)"
        )
    lacking = [metric for metric in section.axes if any(math.isnan(point.error(metric)) for point in shown)]
    if lacking:
        count = sum(any(math.isnan(point.error(metric)) for metric in lacking) for point in shown)
        yield (
            f"one seed, no error known: {' and '.join(lacking)} of {count} of {len(shown)} points, so whether "
            "these, and points that they might dominate, are separable is not known"
        )


def _mark(section: Section, index: int) -> str:
    return (
        ("*" if index in section.front else "")
        + ("?" if section.undecided(index) else "")
        + ("!" if section.points[index].slower else "")
        + ("~" if section.points[index].noisy else "")
    )


def _columns(section: Section) -> list[str]:
    return ["model", "seeds", section.headline, *_COLUMNS.values(), *_extra(section)]


def _extra(section: Section) -> list[str]:
    """Axes that no other column shows."""
    return [name for name in section.axes if name not in (section.headline, *_COLUMNS)]


def _cells(section: Section, point: Point) -> list[str]:
    found = point.figures
    return [
        point.label,
        str(len(point.seeds) or ""),
        _spread(found.get(section.headline)),
        _percent(found["kept"].mean if "kept" in found else None),
        number(point.value("disk_mb")),
        number(point.value("size_ratio")) + ("z" if point.unshrunk else ""),
        number(point.value("params_live")),
        _percent(found["sparsity"].mean if "sparsity" in found else None),
        number(point.value("bits_per_weight")),
        _latency(point),
        *[_spread(found.get(name)) for name in _extra(section)],
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _latency(point: Point) -> str:
    """The ratio and its interval: over seeds, the widest."""
    if point.dense or "latency_ratio" not in point.figures:
        return "1" if point.dense else ""
    ratio = point.figures["latency_ratio"]
    low, high = (point.figures.get(f"latency_ratio_{end}", ratio) for end in ("low", "high"))
    return _spread(Spread(ratio.mean, low.low, high.high))


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.low < spread.high:
        return f"{number(spread.mean)} [{number(spread.low)}, {number(spread.high)}]"
    return number(spread.mean) + (f" ± {spread.error:.2g}" if spread.error else "")


def _write_csv(found: Sequence[Section], path: Path) -> None:
    metrics = sorted({name for section in found for point in section.points for name in point.figures})
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        flags = ["dense", "front", "slower", "dominated_probability", "time", "cover_after"]
        heads = [f"{name}{end}" for name in metrics for end in ("", "_lowest", "_highest", "_error")]
        out.writerow(["corpus", "headline", "label", "chain", "seeds", *flags, *heads])
        for section in found:
            covers = dict(zip(section.finished, section.growth, strict=False))  # no growth where no size is known
            for index, point in enumerate(section.points):
                spreads = [point.figures.get(name) for name in metrics]
                values = [
                    end for one in spreads for end in ((one.mean, one.low, one.high, one.error) if one else [""] * 4)
                ]
                named = [section.title, section.headline, point.label, " ".join(point.chain)]
                facts = [int(point.dense), int(index in section.front), int(point.slower)]
                sure = [section.probabilities[index], point.time, covers.get(index)]
                out.writerow([*named, " ".join(map(str, point.seeds)), *facts, *sure, *values])


def _write_json(found: Sequence[Section], path: Path) -> None:
    rows = [{**asdict(section), "finished": section.finished} for section in found]
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
