"""Draw sections: quality over cost, the Pareto front and how sure it is, slower models, and published points."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimexp.analysis.axis import axis_title, scale_axes
from slimexp.analysis.legend import draw_legend
from slimexp.analysis.section import Section
from slimexp.analysis.style import (
    GREY,
    REFERENCE,
    SLOWER,
    WORD,
    colour_and_marker,
    error_bar,
    kind_of,
    kinds_of,
    number,
    rank,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHADES = "viridis"  # colour map of a third objective
MOST = 70  # sections in a picture, which may be 2^16 pixels high; the page has them all
NEAR = 0.03  # share of an axis: notes of points that are closer would cover one another


def write_png(sections: Sequence[Section], path: Path) -> None:
    """Write one picture, with a row for each section; no display is needed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans"}
    plain = {"text.parse_math": False, "text.usetex": False}  # texts of a record are no formulas
    with rc_context(style | plain), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")  # a box is drawn in its place
        shown = sections[:MOST]
        figure = Figure(figsize=(10, 5.2 * len(shown)), layout="constrained")
        for section, axes in zip(shown, figure.subplots(len(shown), squeeze=False)[:, 0], strict=True):
            draw(section, axes)
        if left := len(sections) - len(shown):
            figure.supxlabel(f"{left} more sections are in the page")
        figure.savefig(path, dpi=160, facecolor="white", bbox_inches="tight")  # nothing is cut at an edge


def draw(section: Section, axes: "Axes") -> None:
    """Draw points, front, dense model, published points and trivial guess of one section."""
    shown = [index for index in range(len(section.points)) if section.drawn(index)]
    axes.set_title(shortened(section.title, WORD), loc="left", fontweight="bold")
    if not shown:
        axes.text(
            0.5,
            0.5,
            f"no point has both {shortened(section.x)} and {shortened(section.y)}",
            ha="center",
            transform=axes.transAxes,
        )
        axes.set_axis_off()
        return
    scale_axes(section, axes)
    kinds = kinds_of(section)
    if section.z is None:
        _draw_front(section, axes)
    fills = _fills(section, kinds, axes)
    for index in shown:
        _draw_point(section, index, fills[index], kinds, axes)
    _draw_published(section, axes)
    _draw_notes(section, shown, axes)
    _draw_trivial(section, axes)
    _name_left_out(section, shown, axes)
    draw_legend(section, kinds, axes)


def _draw_front(section: Section, axes: "Axes") -> None:
    """Draw the front as a step: for any x, the best y among points that are at least as good in x."""
    at_most = section.directions[0] == "min"
    corners = sorted((section.points[i].value(section.x), section.points[i].value(section.y)) for i in section.front)
    if not corners:
        return
    corners = corners if at_most else corners[::-1]
    edge = axes.get_xlim()[1 if at_most else 0]
    x, y = zip(*corners, (edge, corners[-1][1]), strict=True)
    axes.step(x, y, where="post", color="#222222", linewidth=1.3, zorder=2, label="front")


def _fills(section: Section, kinds: Sequence[str], axes: "Axes") -> list[Any]:
    """Colour of each point.

    On the front it is that of the chain, or of the value of z where there is one. A dominated point is grey, or pale in
    the colour of its chain where the data leave open if it is dominated.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgb

    names = ["#111111" if point.dense else colour_and_marker(kind_of(point), kinds)[0] for point in section.points]
    colours: list[Any] = list(map(to_rgb, names))
    compressed = [index for index in section.front if not section.points[index].dense]
    if section.z is not None and compressed:
        depths = {index: section.points[index].value(section.z) for index in compressed}
        scale = Normalize(min(depths.values()), max(depths.values()))
        for index, depth in depths.items():
            colours[index] = colormaps[SHADES](scale(depth))[:3]
        bar = axes.figure.colorbar(ScalarMappable(scale, SHADES), cax=axes.inset_axes((1.03, 0.0, 0.03, 0.22)))
        bar.ax.set_title(axis_title(section, section.z, section.axes[section.z]), fontsize=9, loc="left")
    fills = []
    for index, (point, colour) in enumerate(zip(section.points, colours, strict=True)):
        pale = section.z is None and section.undecided(index)
        behind = tuple(0.6 + 0.4 * part for part in colour) if pale else to_rgb(GREY)
        fills.append(colour if point.dense or index in section.front else behind)
    return fills


def _draw_point(section: Section, index: int, fill: Any, kinds: Sequence[str], axes: "Axes") -> None:
    """Draw a point with its error bars, and a red ring around it where it is slower than the dense model."""
    point = section.points[index]
    x, y = point.figures[section.x], point.figures[section.y]
    on_front = index in section.front
    axes.plot(error_bar(x), [y.mean, y.mean], [x.mean, x.mean], error_bar(y), color=fill, linewidth=1.4, zorder=3)
    axes.scatter(
        x.mean,
        y.mean,
        s=190 if point.dense else 62,
        color=fill,
        marker="*" if point.dense else colour_and_marker(kind_of(point), kinds)[1],
        edgecolors="white" if on_front or point.dense else "#8f8f8f",
        linewidths=0.8,
        zorder=7 if point.dense else 4 + on_front,
    )
    if point.slower:
        axes.scatter(x.mean, y.mean, s=185, facecolors="none", edgecolors=SLOWER, linewidths=1.9, zorder=6)


def _draw_published(section: Section, axes: "Axes") -> None:
    """Draw published points as hollow stars with their names."""
    from matplotlib.patheffects import withStroke

    for point in filter(section.drawable, section.published):
        x, y = point.figures[section.x], point.figures[section.y]
        axes.plot(
            error_bar(x), [y.mean, y.mean], [x.mean, x.mean], error_bar(y), color=REFERENCE, linewidth=1.0, zorder=3
        )
        axes.scatter(x.mean, y.mean, s=170, marker="*", facecolors="white", edgecolors=REFERENCE, zorder=4)
        axes.annotate(
            shortened(point.label),
            (x.mean, y.mean),
            xytext=(9, 6),
            textcoords="offset points",
            fontsize=9,
            color=REFERENCE,
            zorder=8,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _draw_trivial(section: Section, axes: "Axes") -> None:
    """Draw the trivial guess as a dashed line, or name its value in the legend where it lies outside."""
    if section.trivial is None:
        return
    low, high = axes.get_ylim()
    dashes: dict[str, Any] = {"color": REFERENCE, "linestyle": (0, (5, 4)), "linewidth": 1.2}
    if low <= section.trivial <= high:
        axes.axhline(section.trivial, label="no model (best trivial guess)", **dashes)
    else:
        axes.plot([], [], label=f"no model (best trivial guess):\n{number(section.trivial)}, outside", **dashes)


def _name_left_out(section: Section, shown: Sequence[int], axes: "Axes") -> None:
    """Say in the legend how many dominated points lie outside, for the axis shows what is near the front."""
    low, high = axes.get_ylim()
    if left_out := sum(not low <= _place(section, index)[1] <= high for index in shown):
        axes.plot([], [], " ", label=f"{left_out} dominated {'points' if left_out > 1 else 'point'}, outside")


def _draw_notes(section: Section, shown: Sequence[int], axes: "Axes") -> None:
    """Write numbers of front points and names of dense models, in one note for points that lie together."""
    from matplotlib.patheffects import withStroke

    noted = [index for index in shown if section.points[index].dense or index in section.front]
    places = [axes.transAxes.inverted().transform(axes.transData.transform(_place(section, index))) for index in noted]
    together: list[list[int]] = []
    for position, place in enumerate(places):
        near = [group for group in together if np.abs(places[group[0]] - place).max() < NEAR]
        near[0].append(position) if near else together.append([position])
    # nothing lies on the better side of a front point
    left, below = (direction == "min" for direction in section.directions)
    for group in together:
        points = [noted[position] for position in group]
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
    return shortened(point.label.partition(" [")[0]) if point.dense else str(rank(section, index))


def _place(section: Section, index: int) -> tuple[float, float]:
    return section.points[index].value(section.x), section.points[index].value(section.y)
