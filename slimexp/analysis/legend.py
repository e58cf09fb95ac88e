"""Legend of a plot, and the list of the front below it."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from slimexp.analysis.section import Section
from slimexp.analysis.style import GREY, REFERENCE, SLOWER, colour_and_marker, number, rank, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 130  # characters of the list below a plot


def draw_legend(section: Section, kinds: Sequence[str], axes: "Axes") -> None:
    """Draw the meaning of marks beside the plot, and the points of the front with their numbers below it."""
    from matplotlib.lines import Line2D

    def mark(label: str, marker: str, colour: str, **more: object) -> Line2D:
        style = {"markersize": 8, "markeredgecolor": "white", **more}
        return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label, **style)  # type: ignore[arg-type]

    entries = [mark("dense (not compressed)", "*", "#111111", markersize=13)]
    plain = section.z is None  # otherwise colours stand for z
    for kind in kinds:
        colour, marker = colour_and_marker(kind, kinds)
        entries.append(mark(shortened(kind), marker, colour if plain else REFERENCE))
    dominated = [i for i, point in enumerate(section.points) if section.drawn(i) and not point.dense]
    dominated = [i for i in dominated if i not in section.front]
    if plain and any(map(section.undecided, dominated)):
        entries.append(mark("dominated? not separable (pale)", "o", "#99C7E0", markeredgecolor="#8f8f8f"))
    if any(not (plain and section.undecided(i)) for i in dominated):
        entries.append(mark("dominated (grey)", "o", GREY, markeredgecolor="#8f8f8f"))
    if any(map(section.drawable, section.published)):
        entries.append(mark("published by others", "*", "white", markeredgecolor=REFERENCE, markersize=13))
    if any(point.slower for point in section.points):
        ring = {"markerfacecolor": "none", "markeredgecolor": SLOWER, "markeredgewidth": 1.9, "markersize": 12}
        entries.append(mark("slower than dense", "o", SLOWER, **ring))
    entries += [
        mark(text, sign, REFERENCE, markersize=13, markeredgecolor=REFERENCE) for text, sign in _error_bars(section)
    ]
    entries += [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, labelspacing=0.7)
    listed = [_entry(section, index) for index in section.front if not section.points[index].dense]
    axes.text(0, -0.16, "\n".join(listed), transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.5)


def _error_bars(section: Section) -> Iterator[tuple[str, str]]:
    """Meanings of error bars in this section, each with its marker in the legend."""
    shown = list(filter(section.drawable, section.points))
    errors = [point.error(metric) for point in shown if len(point.seeds) == 1 for metric in (section.x, section.y)]
    if any(len(point.seeds) > 1 for point in shown):
        yield "range over seeds", "|"
    if any(error > 0 for error in errors):
        yield "± one standard error (one seed)", "|"
    if np.isnan(errors).any():
        yield "no bar: one seed, no error known", ""


def _entry(section: Section, index: int) -> str:
    """A point of the front: its number, label and values."""
    point = section.points[index]
    seeds = f", {len(point.seeds)} seeds" if len(point.seeds) > 1 else ""
    values = ", ".join(f"{shortened(metric)} {number(point.value(metric))}" for metric in section.axes)
    doubt = f", {100 * (section.probabilities[index] or 0):.0f} % likely dominated" if section.undecided(index) else ""
    text = f"{rank(section, index)}  {shortened(point.label, 2 * LINE)}  ({values}{seeds}{doubt})"
    return textwrap.fill(text, width=LINE, subsequent_indent="    ")
