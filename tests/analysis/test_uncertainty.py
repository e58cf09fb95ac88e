"""Standard errors, and the probability of being dominated, against closed forms."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from slimexp.analysis.comparison import Comparisons
from slimexp.analysis.front import Direction
from slimexp.analysis.point import Point, Spread
from slimexp.analysis.uncertainty import probability_dominated, standard_error

pytestmark = pytest.mark.fast
NAN = math.nan
WAYS: tuple[Direction, Direction] = ("min", "min")


def probabilities(
    means: list[tuple[float, float]], errors: list[float], seeds: int = 1, ways: tuple[Direction, Direction] = WAYS
) -> list[float | None]:
    """Of points with an exact x, and a y of known error."""
    points = [
        Point("", (), False, (), {"x": spread(x, 0, seeds), "y": spread(y, error, seeds)}, {}, (), (), (), "")
        for (x, y), error in zip(means, errors, strict=True)
    ]
    nobody: list[int | None] = [None] * len(points)
    compared = Comparisons(points, better=lambda _: "min", dense=nobody, rows=lambda *_: (), headline="y", guess=0.0)
    return compared.probabilities(np.array(means), dict(zip("xy", ways, strict=True)))


def spread(mean: float, error: float, seeds: int) -> Spread:
    return Spread(mean, mean, mean, None if math.isnan(error) else error, seeds)


def test_one_value_has_the_error_of_its_measure_or_none() -> None:
    assert standard_error([0.3], [0.01]) == 0.01
    assert standard_error([0.3], [0.0]) == 0
    assert standard_error([0.3], [None]) is None


def test_seeds_spread_and_rows_are_common_to_them() -> None:
    values = [0.1, 0.2, 0.4]
    between = np.std(values, ddof=1) / math.sqrt(3)
    assert standard_error(values, [None] * 3) == pytest.approx(between)
    assert standard_error(values, [0.03] * 3) == pytest.approx(math.hypot(between, 0.03))
    assert standard_error(values, [0.03, None, 0.03]) == pytest.approx(between)
    assert standard_error([7.0, 7.0], [0.0, 0.0]) == 0


def test_two_points_are_dominated_as_the_normal_distribution_says() -> None:
    smaller, larger = probabilities([(1, 0.020), (2, 0.018)], [0.002, 0.001])
    assert smaller == 0  # whatever the errors: nothing is as small
    assert larger == pytest.approx(NormalDist().cdf(-0.002 / math.hypot(0.002, 0.001)), abs=0.03)
    mirrored = probabilities([(-1, -0.020), (-2, -0.018)], [0.002, 0.001], ways=("max", "max"))
    assert mirrored == pytest.approx([smaller, larger], abs=0.03)


def test_few_seeds_are_less_sure_than_their_spread() -> None:
    means = [(1.0, 0.0), (2.0, 1.0)]
    one, three, many = (probabilities(means, [0.4, 0], seeds)[1] for seeds in (1, 3, 1000))
    assert three == pytest.approx(0.5 + 2.5 / (2 * math.sqrt(2 + 2.5**2)), abs=0.02)  # Student, 2 degrees of freedom
    assert many == pytest.approx(one, abs=0.01)
    assert three < one  # type: ignore[operator]


def test_without_error_it_is_dominance() -> None:
    assert probabilities([(1, 1), (2, 2), (1, 1), (0, 3)], [0] * 4) == [0, 1, 0, 0]


def test_the_same_again() -> None:
    chance = np.random.default_rng(0)
    means = [tuple(point) for point in chance.random((20, 2))]
    assert probabilities(means, [0.1] * 20) == probabilities(means, [0.1] * 20)


def test_unknown_errors_give_no_probability() -> None:
    means = [(1.0, 0.02), (2.0, 0.01), (3.0, 0.03)]
    assert probabilities(means, [NAN] * 3) == [None] * 3
    # the one that is not known is no smaller than the first, and might beat the last
    assert probabilities(means, [0.001, NAN, 0.001]) == [0, None, pytest.approx(1, abs=0.01)]
    assert probabilities([(1.0, 0.5), *means[1:]], [0.001, NAN, 0.001]) == [0, None, None]
    assert probabilities([(1.0, NAN), *means[1:]], [0.001] * 3) == [None, 0, 1]
    assert probability_dominated(np.empty((1, 0, 2)), np.empty((0, 2)), WAYS) == []


def test_a_point_without_figures_neither_dominates_nor_has_a_probability() -> None:
    assert probabilities([(1, NAN), (2, 0.5)], [NAN, 0.1]) == [None, 0]
