"""The legend: meanings of error bars, and the list of the front."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from matplotlib.axes import Axes

from slimexp.analysis.point import Point
from slimexp.analysis.section import Section


def key(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_error_bars_are_explained(
    drawn: Callable[[Section], Axes],
    make_section: Callable[..., Section],
    make_point: Callable[..., Point],
    usual: Section,
) -> None:
    assert "± one standard error (one seed)" in key(drawn(usual))
    ends = [line.get_ydata() for line in drawn(usual).get_lines()]
    assert any(list(end) == pytest.approx([0.019, 0.021]) for end in ends if len(end) == 2)
    bare = make_point("bare", [{"cer": 0.02, "disk_mb": 3.0}])
    seeds = make_point("seeds", [{"cer": 0.02, "disk_mb": 3.0}, {"cer": 0.04, "disk_mb": 3.0}])
    texts = key(drawn(make_section([bare, seeds], [0], [None, None])))
    assert {"range over seeds", "no bar: one seed, no error known"} < set(texts)


def test_front_points_are_listed_with_their_doubt(drawn: Callable[[Section], Axes], usual: Section) -> None:
    axes = drawn(replace(usual, probabilities=[0.0, 0.3, 1.0, 1.0]))
    assert axes.texts[-1].get_text() == "1  best  (disk_mb 4, cer 0.02, 30 % likely dominated)"
