"""Intervals of medians, from order statistics."""

import statistics
from random import Random

import pytest

from slimexp.measure.interval import median_figures, median_interval, quantile


@pytest.mark.fast
def test_interval_covers_the_median() -> None:
    assert median_interval([5, 1, 3, 2, 4, 6]) == (1, 6)  # 6 values: 2 / 64 outside
    assert median_interval(range(1, 21)) == (6, 15)  # the tables' ranks for n = 20
    assert median_interval([7.0]) == (7.0, 7.0)
    chance = Random(0)
    covered = 0
    for _ in range(400):
        low, high = median_interval([chance.expovariate(1.0) for _ in range(15)])
        covered += low <= 0.693147 <= high
    assert covered / 400 >= 0.93


@pytest.mark.fast
def test_interval_encloses_the_sample_median() -> None:
    chance = Random(1)
    for n in range(1, 40):
        values = [chance.random() for _ in range(n)]
        low, high = median_interval(values)
        assert low <= statistics.median(values) <= high


@pytest.mark.fast
def test_figures_of_ratios() -> None:
    assert median_figures("speed", [3.0, 1.0, 2.0]) == {"speed": 2.0, "speed_low": 1.0, "speed_high": 3.0}
    assert quantile([0.0, 1.0], 0.25) == 0.25
