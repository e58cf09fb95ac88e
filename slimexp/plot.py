"""Draw sections: quality over cost, the Pareto front, what is slower than dense, and what no model would give."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimexp.section import Point, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "cer": "character error rate",
    "wer": "word error rate",
    "exact_match": "exact match",
    "disk_mb": "size on disk (MB)",
    "weights_mb": "weights on disk (MB)",
    "resident_mb": "weights in memory (MB)",
    "peak_mb": "peak memory (MB)",
    "params_live": "parameters",
    "latency_p50_ms": "latency, median (ms)",
    "latency_ratio": "latency, as a multiple of dense",
    "size_ratio": "size on disk, as a multiple of dense",
    "bits_per_weight": "stored bits per weight",
    "kept": "share of the dense model's gain kept",
}
# Okabe & Ito 2008: distinct under every common colour blindness. Red is left to what lost speed.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7A5C00")
MARKERS = ("o", "s", "^", "D", "v", "P")
SLOWER = "#D3222A"
LINE = 130  # characters of the list below a plot
NEAR = 0.03  # of an axis: notes of points closer than that would cover one another
LOG_FROM = 12.0  # largest / smallest value from which a cost or an error has a logarithmic axis


def write_png(found: Sequence[Section], path: Path) -> None:
    """One picture, a row per section; nothing of a display is needed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans"}
    with rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 5.2 * len(found)), layout="constrained")
        for section, axes in zip(found, figure.subplots(len(found), squeeze=False)[:, 0], strict=True):
            _draw(section, axes)
        figure.savefig(path, dpi=160, facecolor="white")


def _draw(section: Section, axes: "Axes") -> None:
    """Points, front, dense reference and trivial guess of one section."""
    shown = [index for index in range(len(section.points)) if section.drawn(index)]
    axes.set_title(section.title, loc="left", fontweight="bold")
    if not shown:
        axes.text(0.5, 0.5, f"no point has both {section.x} and {section.y}", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    _scale(section, axes)
    kinds = kinds_of(section)
    _draw_front(section, axes)
    for index in shown:
        _draw_point(section, index, kinds, axes)
    _draw_notes(section, shown, axes)
    if section.trivial is not None:
        axes.axhline(
            section.trivial,
            color="#555555",
            linestyle=(0, (5, 4)),
            linewidth=1.2,
            label="no model (best trivial guess)",
        )
    _draw_key(section, kinds, axes)


def kind_of(point: Point) -> str:
    """Stages of a point, which share a colour and a marker."""
    return " → ".join(point.chain)


def kinds_of(section: Section) -> list[str]:
    """Chains of a section, in the order in which colours and markers are given out."""
    return list(dict.fromkeys(kind_of(point) for point in section.points if not point.dense))


def _look(kind: str, kinds: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a chain; they are told apart by both."""
    place = kinds.index(kind)
    return COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


def _scale(section: Section, axes: "Axes") -> None:
    """Names, direction and scale of both axes, with room for everything drawn."""
    for axis, metric, way in zip(("x", "y"), (section.x, section.y), section.directions, strict=True):
        name = NAMES.get(metric, metric.replace("_", " "))
        axes.set(**{f"{axis}label": f"{name}   ← better" if way == "min" else f"{name}   better →"})
        spreads = [point.figures[metric] for index, point in enumerate(section.points) if section.drawn(index)]
        ends = [end for spread in spreads for end in (spread.low, spread.high)]
        ends += [section.trivial] if axis == "y" and section.trivial is not None else []
        low, high = min(ends), max(ends)
        if way == "min" and low > 0 and high / low >= LOG_FROM:
            axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low / 1.25, high * 1.25)})
        else:
            room = 0.07 * (high - low or abs(high) or 1)
            axes.set(**{f"{axis}lim": (0 if 0 <= low < 0.75 * high else low - room, high + room)})
        _ticks(axes, axis)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _ticks(axes: "Axes", axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    one = axes.xaxis if axis == "x" else axes.yaxis
    if one.get_scale() == "log":
        one.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _draw_front(section: Section, axes: "Axes") -> None:
    """A step: for any x, the best y among points at least as good in x."""
    at_most = section.directions[0] == "min"
    corners = sorted((section.points[i].value(section.x), section.points[i].value(section.y)) for i in section.front)
    if not corners:
        return
    corners = corners if at_most else corners[::-1]
    edge = axes.get_xlim()[1 if at_most else 0]
    x, y = zip(*corners, (edge, corners[-1][1]), strict=True)
    axes.step(x, y, where="post", color="#222222", linewidth=1.3, zorder=2, label="front")


def _draw_point(section: Section, index: int, kinds: Sequence[str], axes: "Axes") -> None:
    point = section.points[index]
    x, y = point.figures[section.x], point.figures[section.y]
    colour, marker = ("#111111", "*") if point.dense else _look(kind_of(point), kinds)
    on_front = index in section.front
    fill = colour if on_front or point.dense else "#C9C9C9"
    axes.plot([x.low, x.high], [y.mean, y.mean], [x.mean, x.mean], [y.low, y.high], color=fill, linewidth=1.4, zorder=3)
    size = 190 if point.dense else 62
    edge = "white" if on_front or point.dense else "#8f8f8f"
    axes.scatter(
        x.mean,
        y.mean,
        s=size,
        c=fill,
        marker=marker,
        edgecolors=edge,
        linewidths=0.8,
        zorder=7 if point.dense else 4 + on_front,
    )
    if point.slower:
        axes.scatter(x.mean, y.mean, s=185, facecolors="none", edgecolors=SLOWER, linewidths=1.9, zorder=6)


def _draw_notes(section: Section, shown: Sequence[int], axes: "Axes") -> None:
    """Numbers of the front's points and names of dense models; those of points that lie together stand together."""
    from matplotlib.patheffects import withStroke

    noted = [index for index in shown if section.points[index].dense or index in section.front]
    places = [axes.transAxes.inverted().transform(axes.transData.transform(_place(section, index))) for index in noted]
    together: list[list[int]] = []
    for one, place in enumerate(places):
        near = [group for group in together if np.abs(places[group[0]] - place).max() < NEAR]
        near[0].append(one) if near else together.append([one])
    left, below = (way == "min" for way in section.directions)  # nothing lies on the better side of a front point
    for group in together:
        points = [noted[one] for one in group]
        axes.annotate(
            ", ".join(section.points[i].label if section.points[i].dense else str(rank(section, i)) for i in points),
            _place(section, points[0]),
            xytext=(-9 if left else 9, -8 if below else 8),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top" if below else "bottom",
            fontsize=9,
            fontweight="bold",
            zorder=8,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _place(section: Section, index: int) -> tuple[float, float]:
    return section.points[index].value(section.x), section.points[index].value(section.y)


def rank(section: Section, index: int) -> int:
    """Number of a front point in plot, list and page: by x, dense models not counted."""
    return 1 + [one for one in section.front if not section.points[one].dense].index(index)


def _draw_key(section: Section, kinds: Sequence[str], axes: "Axes") -> None:
    """What marks and numbers mean, beside and below the plot."""
    from matplotlib.lines import Line2D

    def mark(label: str, marker: str, colour: str, **more: object) -> Line2D:
        style = {"markersize": 8, "markeredgecolor": "white", **more}
        return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label, **style)  # type: ignore[arg-type]

    entries = [mark("dense (not compressed)", "*", "#111111", markersize=13)]
    entries += [mark(kind, _look(kind, kinds)[1], _look(kind, kinds)[0]) for kind in kinds]
    if any(section.drawn(i) and i not in section.front and not point.dense for i, point in enumerate(section.points)):
        entries.append(mark("dominated (grey)", "o", "#C9C9C9", markeredgecolor="#8f8f8f"))
    if any(point.slower for point in section.points):
        ring = {"markerfacecolor": "none", "markeredgecolor": SLOWER, "markeredgewidth": 1.9, "markersize": 12}
        entries.append(mark("slower than dense", "o", SLOWER, **ring))
    entries += [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, labelspacing=0.7)
    listed = [_entry(section, index) for index in section.front if not section.points[index].dense]
    axes.text(0, -0.16, "\n".join(listed), transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.5)


def _entry(section: Section, index: int) -> str:
    point = section.points[index]
    seeds = f", {len(point.seeds)} seeds" if len(point.seeds) > 1 else ""
    values = ", ".join(f"{metric} {number(point.value(metric))}" for metric in (section.x, section.y))
    text = f"{rank(section, index)}  {point.label}  ({values}{seeds})"
    return textwrap.fill(text, width=LINE, subsequent_indent="    ")


def number(value: float) -> str:
    """Three significant digits; millions and billions by letter; nothing for NaN."""
    if np.isnan(value):
        return ""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
