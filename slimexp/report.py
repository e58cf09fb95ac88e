"""Rebuild table, Pareto front, plot and page from the records alone: ``python -m slimexp.report runs``."""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from slimexp import console
from slimexp.page import html, server
from slimexp.page.content import content
from slimexp.plot import number, write_png
from slimexp.section import X_AXES, Point, Section, Spread, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 after one line of error."""
    with console.output():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser("python -m slimexp.report", description=__doc__)
    parser.add_argument("runs", type=Path, help="folder with records.jsonl somewhere below, or one such file")
    parser.add_argument("--x", metavar="METRIC", help=f"horizontal axis (default: {X_AXES[0]})")
    parser.add_argument("--y", metavar="METRIC", help="vertical axis (default: the headline of each corpus)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--out", metavar="DIR", type=Path, help="where the files go (default: the runs folder)")
    either.add_argument("--watch", action="store_true", help="serve the page to this machine, live, and write nothing")
    parser.add_argument("--port", metavar="N", type=int, help="of --watch (default: any that is free)")
    asked = parser.parse_args(arguments)
    if asked.port is not None and (asked.port not in server.PORTS or not asked.watch):
        parser.error(f"--port must be 0 to {server.PORTS[-1]} and go with --watch, got {asked.port}")
    folder = asked.out or (asked.runs if asked.runs.is_dir() else asked.runs.parent)
    try:
        if asked.watch:
            server.watch(asked.runs, x=asked.x, y=asked.y, port=asked.port or 0)
            return 0
        found = load(asked.runs, x=asked.x, y=asked.y)
        files = write(found, folder, asked.runs)
    except (ValueError, OSError) as error:
        print(f"error: {console.disk_fault(error, str(folder), setting='--out DIR') or error}", file=sys.stderr)
        return console.USER_ERROR
    print("\n\n".join(table(section) for section in found))
    print("\nwritten: " + ", ".join(map(str, files)))
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
        writer(found, folder / name)
    return [folder / name for name in writers]


def table(section: Section) -> str:
    """The section as aligned text, with what its marks mean."""
    head = ["", *_columns(section)]
    rows = [[_mark(section, index), *_cells(section, point)] for index, point in enumerate(section.points)]
    if section.trivial is not None:
        rows.append(["", "no model (best trivial guess)", "", number(section.trivial), "0 %", *[""] * (len(head) - 5)])
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [f"{section.title}: {section.headline}"]
    for row in [head, *rows]:
        aligned = [row[column].ljust(widths[column]) for column in (0, 1)]
        aligned += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join([*lines, *_notes(section)])


def _notes(section: Section) -> Iterator[str]:
    word = {"min": "lower is better", "max": "higher is better"}
    x, y = (f"{name} ({word[way]})" for name, way in zip((section.x, section.y), section.directions, strict=True))
    yield f"* on the front of {x} and {y}"
    if any(point.slower for point in section.points):
        yield "! slower than dense"
    if any(point.noisy for point in section.points):
        yield "~ latency is noisy: other processes took the cores, or the dense model's own times spread"
    if any(len(point.seeds) > 1 for point in section.points):
        yield "over several seeds: mean [lowest, highest]; latency: [95 % interval, the widest]"
    if absent := sum(not section.drawn(index) for index in range(len(section.points))):
        yield f"{absent} not drawn: {section.x} or {section.y} was not measured"
    if section.cover is not None:
        yield f"the front covers {section.cover:.3f} of size x quality (1: dense quality for no bytes)"


def _mark(section: Section, index: int) -> str:
    return (
        ("*" if index in section.front else "")
        + ("!" if section.points[index].slower else "")
        + ("~" if section.points[index].noisy else "")
    )


def _columns(section: Section) -> list[str]:
    extra = [name for name in (section.x, section.y) if name not in (section.headline, "disk_mb", "kept")]
    head = [
        "model",
        "seeds",
        section.headline,
        "kept",
        "disk MB",
        "x dense",
        "params",
        "sparsity",
        "bits",
        "latency x dense",
    ]
    return head + list(dict.fromkeys(extra))


def _cells(section: Section, point: Point) -> list[str]:
    found = point.figures
    several = len(point.seeds) > 1
    extra = _columns(section)[10:]
    return [
        point.label,
        str(len(point.seeds)),
        _spread(found.get(section.headline), several),
        f"{100 * found['kept'].mean:.0f} %" if "kept" in found else "",
        number(point.value("disk_mb")),
        number(point.value("size_ratio")),
        number(point.value("params_live")),
        f"{100 * found['sparsity'].mean:.0f} %" if "sparsity" in found else "",
        number(point.value("bits_per_weight")),
        _latency(point),
        *[_spread(found.get(name), several) for name in extra],
    ]


def _latency(point: Point) -> str:
    """The ratio and its interval: over seeds, the widest."""
    if point.dense or "latency_ratio" not in point.figures:
        return "1" if point.dense else ""
    ratio = point.figures["latency_ratio"]
    low, high = (point.figures.get(f"latency_ratio_{end}", ratio) for end in ("low", "high"))
    return _spread(Spread(ratio.mean, low.low, high.high), True)


def _spread(spread: Spread | None, several: bool) -> str:
    if spread is None:
        return ""
    return number(spread.mean) + (
        f" [{number(spread.low)}, {number(spread.high)}]" if several and spread.low < spread.high else ""
    )


def _write_csv(found: Sequence[Section], path: Path) -> None:
    metrics = sorted({name for section in found for point in section.points for name in point.figures})
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        ends = [f"{name}{end}" for name in metrics for end in ("", "_lowest", "_highest")]
        out.writerow(["corpus", "headline", "label", "chain", "seeds", "dense", "front", "slower", *ends])
        for section in found:
            for index, point in enumerate(section.points):
                spreads = [point.figures.get(name) for name in metrics]
                values = [value for one in spreads for value in ((one.mean, one.low, one.high) if one else ("",) * 3)]
                flags = [point.dense, index in section.front, point.slower]
                seeds, chain = " ".join(map(str, point.seeds)), " ".join(point.chain)
                out.writerow([section.title, section.headline, point.label, chain, seeds, *map(int, flags), *values])


def _write_json(found: Sequence[Section], path: Path) -> None:
    path.write_text(json.dumps([asdict(section) for section in found], indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
