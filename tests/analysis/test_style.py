"""Numbers, marks and names as plot, page and tables show them."""

import math
from collections.abc import Callable

import pytest

from slimexp.analysis.point import Point, Spread
from slimexp.analysis.section import Section
from slimexp.analysis.style import colour_and_marker, error_bar, kinds_of, number, rank, shortened

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, ""),
        (0.0, "0"),
        (0.012345, "0.0123"),
        (99.96, "100"),
        (1234.5, "1234"),
        (1.2345e6, "1.23M"),
        (-2.5e9, "-2.5B"),
        (1.234e25, "1.23e+25"),
    ],
)
def test_numbers_have_three_digits_and_letters_from_a_million_on(value: float, text: str) -> None:
    assert number(value) == text


def test_colour_and_marker_together_distinguish_36_chains() -> None:
    kinds = [str(index) for index in range(36)]
    assert len({colour_and_marker(kind, kinds) for kind in kinds}) == 36


def test_an_error_bar_is_the_range_over_seeds_or_one_standard_error() -> None:
    assert error_bar(Spread(2.0, 1.0, 4.0, error=0.5, seeds=3)) == (1.0, 4.0)
    assert error_bar(Spread(2.0, 2.0, 2.0, error=0.5)) == (1.5, 2.5)
    assert error_bar(Spread(2.0, 2.0, 2.0)) == (2.0, 2.0)


def test_front_points_are_numbered_without_dense_models(usual: Section) -> None:
    assert [rank(usual, index) for index in usual.front if not usual.points[index].dense] == [1]


def test_a_chain_is_a_kind_and_a_dense_model_is_none(
    make_point: Callable[..., Point], make_section: Callable[..., Section]
) -> None:
    chains = [("prune",), ("prune", "quantize"), ("prune",)]
    points = [make_point("dense", [{}]), *(make_point("x", [{}], chain=chain) for chain in chains)]
    assert kinds_of(make_section(points, [], [])) == ["prune", "prune → quantize"]


def test_a_long_text_is_cut() -> None:
    assert (shortened("abc", 3), shortened("abcd", 3)) == ("abc", "abc…")
