"""The picture: colours of points, published points and a third objective."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from slimexp.analysis.plot import write_png
from slimexp.analysis.point import Point, spreads
from slimexp.analysis.section import Section
from slimexp.analysis.style import GREY, SLOWER

DENSE = {"cer": 0.02, "disk_mb": 16.0, "latency_ratio": 1.0}


def key(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def faces(axes: Axes) -> dict[tuple[float, float], list[str]]:
    """Place -> fill colours of the marks there; nothing for a hollow one."""
    found: dict[tuple[float, float], list[str]] = {}
    for marks in axes.collections:
        x, y = np.asarray(marks.get_offsets())[0]
        found.setdefault((float(x), float(y)), []).extend(map(to_hex, marks.get_facecolor()))
    return found


def test_colours_distinguish_front_doubt_and_dominance(drawn: Callable[[Section], Axes], usual: Section) -> None:
    axes = drawn(usual)
    best, near, slow = (faces(axes)[place][0] for place in ((4.0, 0.02), (5.0, 0.0205), (8.0, 0.03)))
    assert len({best, near, slow}) == 3
    assert slow == GREY.lower()
    assert {"dominated (grey)", "dominated? not separable (pale)", "slower than dense"} < set(key(axes))
    rings = [marks for marks in axes.collections if to_hex(marks.get_edgecolor()[0]) == SLOWER.lower()]
    assert [tuple(ring.get_offsets()[0]) for ring in rings] == [(8.0, 0.03)]


def test_published_points_are_hollow_and_named(
    drawn: Callable[[Section], Axes], make_point: Callable[..., Point], usual: Section
) -> None:
    others = [
        replace(make_point(name, [figures]), seeds=()) for name, figures in (("X", DENSE), ("no size", {"cer": 0.1}))
    ]
    others[0] = replace(others[0], label="X 2024", figures=spreads([{"cer": 0.05, "disk_mb": 2.0}], dense=False))
    axes = drawn(replace(usual, published=others))
    assert "published by others" in key(axes)
    assert faces(axes)[2.0, 0.05] == ["#ffffff"]
    assert [text.get_text() for text in axes.texts if text.get_text() in ("X 2024", "no size")] == ["X 2024"]
    assert axes.get_xlim()[0] < 2 and axes.get_ylim()[1] > 0.05


def test_a_third_objective_is_a_shade(drawn: Callable[[Section], Axes], usual: Section) -> None:
    points = [replace(one, figures={**one.figures, **spreads([{"energy": 1.0}], dense=False)}) for one in usual.points]
    axes = drawn(replace(usual, points=points, z="energy", z_direction="min"))
    (shades,) = axes.child_axes
    assert isinstance(shades, Axes) and "energy" in shades.get_title("left")
    assert "front" not in key(axes)  # a step of two says nothing of three
    assert "energy 1" in axes.texts[-1].get_text()


def test_a_file_is_written(
    make_section: Callable[..., Section], make_point: Callable[..., Point], usual: Section, tmp_path: Path
) -> None:
    write_png([usual, make_section([make_point("dense", [DENSE])], [0], [None])], tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
