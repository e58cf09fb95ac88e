"""The picture: what is told by colour, mark and word."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from slimexp.analysis.plot import GREY, SLOWER, _draw, write_png
from slimexp.analysis.point import Point, spreads
from slimexp.analysis.section import Section

DENSE = {"cer": 0.02, "disk_mb": 16.0, "latency_ratio": 1.0}


def point(label: str, rows: Sequence[dict[str, float]], *, chain: tuple[str, ...] = ("prune",)) -> Point:
    dense = label == "dense"
    return Point(label, chain, dense, tuple(range(len(rows))), spreads(rows, dense=dense), {}, ("run",), (), (), "2026")


def section(points: list[Point], front: list[int], probabilities: list[float | None], **changes: Any) -> Section:
    one = Section(
        title="spelling",
        headline="cer",
        direction="min",
        x="disk_mb",
        y="cer",
        directions=("min", "min"),
        z=None,
        z_direction=None,
        trivial=0.08,
        points=points,
        front=front,
        probabilities=probabilities,
        corner=None,
        volume=None,
        cover=None,
        growth=[],
        published=[],
        environments=[],
    )
    return replace(one, **changes)


@pytest.fixture
def usual() -> Section:
    rows = {
        "dense": {**DENSE, "cer_stderr": 0.001},
        "best": {"cer": 0.02, "disk_mb": 4.0, "cer_stderr": 0.001},
        "near": {"cer": 0.0205, "disk_mb": 5.0, "cer_stderr": 0.001},
        "slow": {"cer": 0.03, "disk_mb": 8.0, "cer_stderr": 0.001, "latency_ratio": 1.5},
    }
    points = [point(label, [figures]) for label, figures in rows.items()]
    return section(points, [0, 1], [0.4, 0.0, 0.6, 1.0])


def drawn(one: Section) -> Axes:
    axes = Figure(figsize=(10, 5)).subplots()
    _draw(one, axes)
    return axes


def key(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def faces(axes: Axes) -> dict[tuple[float, float], list[str]]:
    """Place -> fill colours of the marks there; nothing for a hollow one."""
    found: dict[tuple[float, float], list[str]] = {}
    for marks in axes.collections:
        x, y = np.asarray(marks.get_offsets())[0]
        found.setdefault((float(x), float(y)), []).extend(map(to_hex, marks.get_facecolor()))
    return found


def test_colour_tells_front_doubt_and_dominance(usual: Section) -> None:
    axes = drawn(usual)
    best, near, slow = (faces(axes)[place][0] for place in ((4.0, 0.02), (5.0, 0.0205), (8.0, 0.03)))
    assert len({best, near, slow}) == 3
    assert slow == GREY.lower()
    assert {"dominated (grey)", "dominated? not separable (pale)", "slower than dense"} < set(key(axes))
    rings = [marks for marks in axes.collections if to_hex(marks.get_edgecolor()[0]) == SLOWER.lower()]
    assert [tuple(ring.get_offsets()[0]) for ring in rings] == [(8.0, 0.03)]


def test_bars_are_told(usual: Section) -> None:
    assert "± one standard error (one seed)" in key(drawn(usual))
    ends = [line.get_ydata() for line in drawn(usual).get_lines()]
    assert any(list(end) == pytest.approx([0.019, 0.021]) for end in ends if len(end) == 2)
    bare = point("bare", [{"cer": 0.02, "disk_mb": 3.0}])
    seeds = point("seeds", [{"cer": 0.02, "disk_mb": 3.0}, {"cer": 0.04, "disk_mb": 3.0}])
    said = key(drawn(section([bare, seeds], [0], [None, None])))
    assert {"range over seeds", "no bar: one seed, no error known"} < set(said)


def test_published_points_are_hollow_and_named(usual: Section) -> None:
    others = [replace(point(name, [figures]), seeds=()) for name, figures in (("X", DENSE), ("no size", {"cer": 0.1}))]
    others[0] = replace(others[0], label="X 2024", figures=spreads([{"cer": 0.05, "disk_mb": 2.0}], dense=False))
    axes = drawn(replace(usual, published=others))
    assert "published by others" in key(axes)
    assert faces(axes)[2.0, 0.05] == ["#ffffff"]
    assert [text.get_text() for text in axes.texts if text.get_text() in ("X 2024", "no size")] == ["X 2024"]
    assert axes.get_xlim()[0] < 2 and axes.get_ylim()[1] > 0.05


def test_a_third_objective_is_a_shade(usual: Section) -> None:
    points = [replace(one, figures={**one.figures, **spreads([{"energy": 1.0}], dense=False)}) for one in usual.points]
    axes = drawn(replace(usual, points=points, z="energy", z_direction="min"))
    (shades,) = axes.child_axes
    assert isinstance(shades, Axes) and "energy" in shades.get_title("left")
    assert "front" not in key(axes)  # a step of two says nothing of three
    assert "energy 1" in axes.texts[-1].get_text()


def test_the_trivial_guess_does_not_squeeze_the_points(usual: Section) -> None:
    axes = drawn(usual)
    assert axes.get_ylim()[1] < 0.04 and any("0.08, outside" in text for text in key(axes))
    axes = drawn(replace(usual, trivial=0.05))
    assert axes.get_ylim()[1] > 0.05 and "no model (best trivial guess)" in key(axes)


def test_front_points_that_may_be_dominated_are_listed_so(usual: Section) -> None:
    axes = drawn(replace(usual, probabilities=[0.0, 0.3, 1.0, 1.0]))
    assert axes.texts[-1].get_text() == "1  best  (disk_mb 4, cer 0.02, 30 % likely dominated)"


def test_a_file_is_written(usual: Section, tmp_path: Path) -> None:
    write_png([usual, section([point("dense", [DENSE])], [0], [None])], tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
