"""The two axes of a plot: their titles, scales, ends and ticks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from slimexp.analysis.front import Direction
from slimexp.analysis.section import Section
from slimexp.analysis.style import LOG_FROM, NAMES, error_bar, number, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SQUEEZED = 2.0  # the trivial guess is left outside where the axis would grow by more


def scale_axes(section: Section, axes: "Axes") -> None:
    """Names, direction and scale of both axes, with room for everything drawn."""
    for axis, metric, way in zip(("x", "y"), (section.x, section.y), section.directions, strict=True):
        drawn = filter(section.drawable, [*section.points, *section.published])
        ends = [end for point in drawn for end in error_bar(point.figures[metric])]
        scale, limits = _limits(ends, way)
        if axis == "y" and section.trivial is not None:
            also = _limits([*ends, section.trivial], way)
            if also[0] == "log" or also[1][1] - also[1][0] <= SQUEEZED * (limits[1] - limits[0]):
                scale, limits = also
        axes.set(**{f"{axis}label": axis_title(metric, way), f"{axis}scale": scale, f"{axis}lim": limits})
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


def axis_title(metric: str, way: Direction) -> str:
    """``size on disk (MB)   ← better``."""
    name = NAMES.get(metric) or shortened(metric.replace("_", " "))
    return f"{name}   ← better" if way == "min" else f"{name}   better →"


def _ticks(axes: "Axes", axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    one = axes.xaxis if axis == "x" else axes.yaxis
    if one.get_scale() == "log":
        one.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
