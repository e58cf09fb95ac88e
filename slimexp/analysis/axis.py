"""The two axes of a plot: their titles, scales, ends and ticks."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slimexp.analysis.front import Direction
from slimexp.analysis.point import Point
from slimexp.analysis.section import Section
from slimexp.analysis.style import LOG_FROM, error_bar, number, shortened, title_of
from slimexp.record.exported import exported

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What stretches the quality axis by more than this factor is left out.
SQUEEZED_BY_GUESS = 2.0
SQUEEZED_BY_DOMINATED = 3.0
ZERO = {"x": 0.75, "y": 0.5}  # an axis starts at 0 where its least value is below this share of its largest


def scale_axes(section: Section, axes: "Axes") -> None:
    """Set titles, scales, limits and ticks of both axes, with room for everything that is drawn."""
    points = [section.points[index] for index in range(len(section.points)) if section.drawn(index)]
    published = list(filter(section.drawable, section.published))
    decisive = [
        point
        for index, point in enumerate(section.points)
        if section.drawn(index) and (point.dense or index in section.front or section.undecided(index))
    ]

    def ends(metric: str, *groups: Sequence[Point]) -> list[float]:
        return [end for group in groups for point in group for end in error_bar(point.figures[metric])]

    for axis, metric, direction in zip(("x", "y"), (section.x, section.y), section.directions, strict=True):
        if axis == "y":
            decides = ends(metric, decisive, published)
            scale, limits = _focused(decides, ends(metric, points, published), section.trivial, direction)
        else:
            scale, limits = _limits(ends(metric, points, published), direction, zero=ZERO[axis])
        axes.set(
            **{f"{axis}label": axis_title(section, metric, direction), f"{axis}scale": scale, f"{axis}lim": limits}
        )
        _ticks(axes, axis)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _focused(
    decisive: Sequence[float], ends: Sequence[float], trivial: float | None, direction: Direction
) -> tuple[str, tuple[float, float]]:
    """Scale and limits of the quality axis: it holds what decides, and more where that does not squeeze it.

    Args:
        decisive: Ends of the error bars of the front, the dense model, published points, and points that may be on the
            front.
        ends: Ends of the error bars of all points.
        trivial: Headline of the trivial guess; ``None`` where it is not known.
        direction: Which way the headline is better.
    """
    chosen = _limits(decisive or ends, direction, zero=ZERO["y"])
    held = list(decisive or ends)
    for more, most in ((ends, SQUEEZED_BY_DOMINATED), ([] if trivial is None else [trivial], SQUEEZED_BY_GUESS)):
        scale, limits = _limits([*held, *more], direction, zero=ZERO["y"])
        if _span(scale, limits) <= most * _span(scale, chosen[1]):
            chosen = scale, limits
            held += more
    return chosen


def _span(scale: str, limits: tuple[float, float]) -> float:
    """Length of an axis; of a logarithmic one its logarithm, of which the shortest that is drawn is no squeeze."""
    low, high = limits
    if scale == "linear":
        return high - low
    return max(math.log(high / low), math.log(LOG_FROM)) if low > 0 else math.log(LOG_FROM)


def _limits(ends: Sequence[float], direction: Direction, *, zero: float) -> tuple[str, tuple[float, float]]:
    """Scale (``log`` or ``linear``) of an axis that holds ``ends``, and its limits."""
    low, high = min(ends), max(ends)
    if direction == "min" and low > 0 and high / low >= LOG_FROM:
        return "log", (low / 1.25, high * 1.25)
    room = 0.07 * (high - low or abs(high) or 1)
    return "linear", (0 if 0 <= low < zero * high else low - room, high + room)


def axis_title(section: Section, metric: str, direction: Direction) -> str:
    """Title of an axis: ``size on disk (MB)   ← better``."""
    name = shortened(title_of(metric, exported(section.metrics)))
    return f"{name}   ← better" if direction == "min" else f"{name}   better →"


def _ticks(axes: "Axes", axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    target = axes.xaxis if axis == "x" else axes.yaxis
    if target.get_scale() == "log":
        target.set_major_locator(LogLocator(subs=(1, 2, 5)))
        target.set_minor_locator(NullLocator())
    target.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
