"""Draw sections: quality over cost, the Pareto front and how sure it is, what is slower than dense, and references."""

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimexp.analysis.front import Direction
from slimexp.analysis.point import Point, Spread
from slimexp.analysis.section import Section

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
GREY = "#C9C9C9"  # dominated
REFERENCE = "#555555"
SHADES = "viridis"  # of a third objective
MOST = 70  # sections of a picture, which may have 2^16 pixels; the page has them all
LINE = 130  # characters of the list below a plot
WORD = 60  # characters of a title, and of a name within a plot
NEAR = 0.03  # of an axis: notes of points closer than that would cover one another
SQUEEZED = 2.0  # the trivial guess is left outside where the axis would grow by more
LOG_FROM = 12.0  # largest / smallest value from which a cost or an error has a logarithmic axis


def write_png(found: Sequence[Section], path: Path) -> None:
    """One picture, a row per section; nothing of a display is needed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans"}
    plain = {"text.parse_math": False, "text.usetex": False}  # words of a record are no formulas
    with rc_context(style | plain), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")  # a box is drawn in its place
        shown = found[:MOST]
        figure = Figure(figsize=(10, 5.2 * len(shown)), layout="constrained")
        for section, axes in zip(shown, figure.subplots(len(shown), squeeze=False)[:, 0], strict=True):
            _draw(section, axes)
        if left := len(found) - len(shown):
            figure.supxlabel(f"{left} more sections are in the page")
        figure.savefig(path, dpi=160, facecolor="white")


def _draw(section: Section, axes: "Axes") -> None:
    """Points, front, dense reference and trivial guess of one section."""
    shown = [index for index in range(len(section.points)) if section.drawn(index)]
    axes.set_title(_cut(section.title, WORD), loc="left", fontweight="bold")
    if not shown:
        axes.text(
            0.5,
            0.5,
            f"no point has both {_cut(section.x)} and {_cut(section.y)}",
            ha="center",
            transform=axes.transAxes,
        )
        axes.set_axis_off()
        return
    _scale(section, axes)
    kinds = kinds_of(section)
    if section.z is None:
        _draw_front(section, axes)
    fills = _fills(section, kinds, axes)
    for index in shown:
        _draw_point(section, index, fills[index], kinds, axes)
    _draw_published(section, axes)
    _draw_notes(section, shown, axes)
    _draw_trivial(section, axes)
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
        drawn = filter(section.drawable, [*section.points, *section.published])
        ends = [end for point in drawn for end in _bar(point.figures[metric])]
        scale, limits = _limits(ends, way)
        if axis == "y" and section.trivial is not None:
            also = _limits([*ends, section.trivial], way)
            if also[0] == "log" or also[1][1] - also[1][0] <= SQUEEZED * (limits[1] - limits[0]):
                scale, limits = also
        axes.set(**{f"{axis}label": _named(metric, way), f"{axis}scale": scale, f"{axis}lim": limits})
        _ticks(axes, axis)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _limits(ends: Sequence[float], way: Direction) -> tuple[str, tuple[float, float]]:
    """Scale of an axis, and where it begins and ends."""
    low, high = min(ends), max(ends)
    if way == "min" and low > 0 and high / low >= LOG_FROM:
        return "log", (low / 1.25, high * 1.25)
    room = 0.07 * (high - low or abs(high) or 1)
    return "linear", (0 if 0 <= low < 0.75 * high else low - room, high + room)


def _named(metric: str, way: Direction) -> str:
    """``size on disk (MB)   ← better``."""
    name = NAMES.get(metric) or _cut(metric.replace("_", " "))
    return f"{name}   ← better" if way == "min" else f"{name}   better →"


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


def _bar(spread: Spread) -> tuple[float, float]:
    """Ends of an error bar: the range over seeds; of one seed, one standard error to each side where it is known."""
    if spread.seeds > 1 or not spread.error:
        return spread.low, spread.high
    return spread.mean - spread.error, spread.mean + spread.error


def _fills(section: Section, kinds: Sequence[str], axes: "Axes") -> list[Any]:
    """Colour of each point: its chain's on the front, or its z where there is one; pale where that is not sure."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgb

    own: list[Any] = [to_rgb("#111111" if point.dense else _look(kind_of(point), kinds)[0]) for point in section.points]
    compressed = [index for index in section.front if not section.points[index].dense]
    if section.z is not None and compressed:
        depths = {index: section.points[index].value(section.z) for index in compressed}
        scale = Normalize(min(depths.values()), max(depths.values()))
        for index, depth in depths.items():
            own[index] = colormaps[SHADES](scale(depth))[:3]
        bar = axes.figure.colorbar(ScalarMappable(scale, SHADES), cax=axes.inset_axes((1.03, 0.0, 0.03, 0.22)))
        bar.ax.set_title(_named(section.z, section.axes[section.z]), fontsize=9, loc="left")
    fills = []
    for index, (point, colour) in enumerate(zip(section.points, own, strict=True)):
        pale = section.z is None and section.undecided(index)
        beside = tuple(0.6 + 0.4 * part for part in colour) if pale else to_rgb(GREY)
        fills.append(colour if point.dense or index in section.front else beside)
    return fills


def _draw_point(section: Section, index: int, fill: Any, kinds: Sequence[str], axes: "Axes") -> None:
    point = section.points[index]
    x, y = point.figures[section.x], point.figures[section.y]
    on_front = index in section.front
    axes.plot(_bar(x), [y.mean, y.mean], [x.mean, x.mean], _bar(y), color=fill, linewidth=1.4, zorder=3)
    axes.scatter(
        x.mean,
        y.mean,
        s=190 if point.dense else 62,
        color=fill,
        marker="*" if point.dense else _look(kind_of(point), kinds)[1],
        edgecolors="white" if on_front or point.dense else "#8f8f8f",
        linewidths=0.8,
        zorder=7 if point.dense else 4 + on_front,
    )
    if point.slower:
        axes.scatter(x.mean, y.mean, s=185, facecolors="none", edgecolors=SLOWER, linewidths=1.9, zorder=6)


def _draw_published(section: Section, axes: "Axes") -> None:
    from matplotlib.patheffects import withStroke

    for point in filter(section.drawable, section.published):
        x, y = point.figures[section.x], point.figures[section.y]
        axes.plot(_bar(x), [y.mean, y.mean], [x.mean, x.mean], _bar(y), color=REFERENCE, linewidth=1.0, zorder=3)
        axes.scatter(x.mean, y.mean, s=170, marker="*", facecolors="white", edgecolors=REFERENCE, zorder=4)
        axes.annotate(
            _cut(point.label),
            (x.mean, y.mean),
            xytext=(9, 6),
            textcoords="offset points",
            fontsize=9,
            color=REFERENCE,
            zorder=8,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _draw_trivial(section: Section, axes: "Axes") -> None:
    if section.trivial is None:
        return
    low, high = axes.get_ylim()
    dashes: dict[str, Any] = {"color": REFERENCE, "linestyle": (0, (5, 4)), "linewidth": 1.2}
    if low <= section.trivial <= high:
        axes.axhline(section.trivial, label="no model (best trivial guess)", **dashes)
    else:
        axes.plot([], [], label=f"no model (best trivial guess):\n{number(section.trivial)}, outside", **dashes)


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
            ", ".join(_note(section, index) for index in points),
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


def _note(section: Section, index: int) -> str:
    """A front point's number, or a dense model's name without the settings of its run, which may be a path."""
    point = section.points[index]
    return _cut(point.label.partition(" [")[0]) if point.dense else str(rank(section, index))


def _cut(text: str, most: int = WORD) -> str:
    """No more of a text than a picture has room for."""
    return text if len(text) <= most else f"{text[:most]}…"


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
    plain = section.z is None  # else colours tell z
    entries += [
        mark(_cut(kind), _look(kind, kinds)[1], _look(kind, kinds)[0] if plain else REFERENCE) for kind in kinds
    ]
    beaten = [i for i, point in enumerate(section.points) if section.drawn(i) and not point.dense]
    beaten = [i for i in beaten if i not in section.front]
    if plain and any(map(section.undecided, beaten)):
        entries.append(mark("dominated? not separable (pale)", "o", "#99C7E0", markeredgecolor="#8f8f8f"))
    if any(not (plain and section.undecided(i)) for i in beaten):
        entries.append(mark("dominated (grey)", "o", GREY, markeredgecolor="#8f8f8f"))
    if any(map(section.drawable, section.published)):
        entries.append(mark("published by others", "*", "white", markeredgecolor=REFERENCE, markersize=13))
    if any(point.slower for point in section.points):
        ring = {"markerfacecolor": "none", "markeredgecolor": SLOWER, "markeredgewidth": 1.9, "markersize": 12}
        entries.append(mark("slower than dense", "o", SLOWER, **ring))
    entries += [mark(said, sign, REFERENCE, markersize=13, markeredgecolor=REFERENCE) for said, sign in _bars(section)]
    entries += [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, labelspacing=0.7)
    listed = [_entry(section, index) for index in section.front if not section.points[index].dense]
    axes.text(0, -0.16, "\n".join(listed), transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.5)


def _bars(section: Section) -> Iterator[tuple[str, str]]:
    """What error bars mean, with the sign of each in the key."""
    shown = list(filter(section.drawable, section.points))
    errors = [point.error(metric) for point in shown if len(point.seeds) == 1 for metric in (section.x, section.y)]
    if any(len(point.seeds) > 1 for point in shown):
        yield "range over seeds", "|"
    if any(error > 0 for error in errors):
        yield "± one standard error (one seed)", "|"
    if np.isnan(errors).any():
        yield "no bar: one seed, no error known", ""


def _entry(section: Section, index: int) -> str:
    point = section.points[index]
    seeds = f", {len(point.seeds)} seeds" if len(point.seeds) > 1 else ""
    values = ", ".join(f"{_cut(metric)} {number(point.value(metric))}" for metric in section.axes)
    doubt = f", {100 * (section.probabilities[index] or 0):.0f} % likely dominated" if section.undecided(index) else ""
    text = f"{rank(section, index)}  {_cut(point.label, 2 * LINE)}  ({values}{seeds}{doubt})"
    return textwrap.fill(text, width=LINE, subsequent_indent="    ")


def number(value: float) -> str:
    """Three significant digits; millions and billions by letter; nothing for NaN."""
    if np.isnan(value):
        return ""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
