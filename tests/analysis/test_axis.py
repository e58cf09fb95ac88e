"""Axes: titles with the better direction, scales and limits."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from matplotlib.axes import Axes

from slimexp.analysis.axis import axis_title
from slimexp.analysis.point import Point
from slimexp.analysis.section import Section


def key(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_trivial_guess_does_not_squeeze_the_points(drawn: Callable[[Section], Axes], usual: Section) -> None:
    axes = drawn(usual)
    assert axes.get_ylim()[1] < 0.04 and any("0.08, outside" in text for text in key(axes))
    axes = drawn(replace(usual, trivial=0.023))
    assert axes.get_ylim()[1] > 0.023 and "no model (best trivial guess)" in key(axes)


def test_dominated_points_far_from_the_front_are_counted_and_not_drawn(
    make_point: Callable[..., Point], make_section: Callable[..., Section], drawn: Callable[[Section], Axes]
) -> None:
    def axes(worst: float) -> Axes:
        rows = [{"cer": cer, "disk_mb": size} for cer, size in ((0.03, 2.0), (0.02, 4.0), (worst, 5.0))]
        points = [make_point("prune", [row]) for row in rows]
        return drawn(make_section(points, [0, 1], [0.0, 0.0, 1.0]))

    near, far = axes(0.04), axes(0.2)
    assert near.get_ylim()[1] > 0.04 and not any("outside" in text for text in key(near) if "dominated" in text)
    assert far.get_ylim()[1] < 0.05 and "1 dominated point, outside" in key(far)


def test_costs_of_more_than_a_decade_have_a_logarithmic_axis(
    make_point: Callable[..., Point], make_section: Callable[..., Section], drawn: Callable[[Section], Axes]
) -> None:
    def axes(largest: float) -> Axes:
        rows = [{"cer": 0.02, "disk_mb": size} for size in (1.0, largest)]
        return drawn(make_section([make_point("prune", [row]) for row in rows], [0], [None, None]))

    assert (axes(11.0).get_xscale(), axes(13.0).get_xscale()) == ("linear", "log")
    assert axes(13.0).get_xlim() == pytest.approx((0.8, 16.25))


def test_a_broken_model_does_not_squeeze_a_logarithmic_axis(
    make_point: Callable[..., Point], make_section: Callable[..., Section], drawn: Callable[[Section], Axes]
) -> None:
    def axes(worst: float) -> Axes:
        rows = [{"cer": cer, "disk_mb": size} for cer, size in ((12.0, 2.0), (10.0, 4.0), (worst, 5.0))]
        points = [make_point("prune", [row]) for row in rows]
        return drawn(make_section(points, [0, 1], [0.0, 0.0, 1.0], trivial=None))

    assert axes(1e3).get_yscale() == "log" and axes(1e3).get_ylim()[1] > 1e3
    assert axes(1e6).get_yscale() == "linear" and "1 dominated point, outside" in key(axes(1e6))


def test_a_title_names_the_metric_and_its_better_direction(
    make_section: Callable[..., Section], make_point: Callable[..., Point]
) -> None:
    engine = {"decode_tokens_per_s": 9.0, "gguf_logit_gap": 1e-6, "gguf_tokens_per_s": 30.0}
    section = make_section([make_point("a", [{"cer": 0.1, "disk_mb": 1.0, **engine}])], [0], [0.0])
    assert axis_title(section, "disk_mb", "min") == "size on disk (MB)   ← better"
    assert axis_title(section, "decode_tokens_per_s", "max") == "decode tokens per s   better →"
    assert axis_title(section, "gguf_tokens_per_s", "max") == "gguf greedy decoding (tokens/s)   better →"
