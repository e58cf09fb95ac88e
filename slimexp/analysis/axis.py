"""The two axes of a plot: their titles, scales, ends and ticks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from slimexp.analysis.front import Direction
from slimexp.analysis.section import Section
from slimexp.analysis.style import LOG_FROM, NAMES, error_bar, number, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SQUEEZED = 2.0  # the trivial guess is left outside where it would stretch the axis by more than this factor


def scale_axes(section: Section, axes: "Axes") -> None:
    """Set titles, scales, limits and ticks of both axes, with room for everything that is drawn."""
    for axis, metric, direction in zip(("x", "y"), (section.x, section.y), section.directions, strict=True):
        drawn = filter(section.drawable, [*section.points, *section.published])
        ends = [end for point in drawn for end in error_bar(point.figures[metric])]
        scale, limits = _limits(ends, direction)
        if axis == "y" and section.trivial is not None:
            wider_scale, wider = _limits([*ends, section.trivial], direction)
            if wider_scale == "log" or wider[1] - wider[0] <= SQUEEZED * (limits[1] - limits[0]):
                scale, limits = wider_scale, wider
        axes.set(**{f"{axis}label": axis_title(metric, direction), f"{axis}scale": scale, f"{axis}lim": limits})
        _ticks(axes, axis)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _limits(ends: Sequence[float], direction: Direction) -> tuple[str, tuple[float, float]]:
    """Scale (``log`` or ``linear``) of an axis that holds ``ends``, and its limits."""
    low, high = min(ends), max(ends)
    if direction == "min" and low > 0 and high / low >= LOG_FROM:
        return "log", (low / 1.25, high * 1.25)
    room = 0.07 * (high - low or abs(high) or 1)
    return "linear", (0 if 0 <= low < 0.75 * high else low - room, high + room)


def axis_title(metric: str, direction: Direction) -> str:
    """Title of an axis: ``size on disk (MB)   ← better``."""
    name = NAMES.get(metric) or shortened(metric.replace("_", " "))
    return f"{name}   ← better" if direction == "min" else f"{name}   better →"


def _ticks(axes: "Axes", axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    target = axes.xaxis if axis == "x" else axes.yaxis
    if target.get_scale() == "log":
        target.set_major_locator(LogLocator(subs=(1, 2, 5)))
        target.set_minor_locator(NullLocator())
    target.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
