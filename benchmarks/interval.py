"""Intervals of means over seeds."""

import statistics
from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and the ends of its interval.

    Attributes:
        mean: Of the values, in their unit.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of independent ``values``, at ``CONFIDENCE``; of one value it is everything."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, -inf, inf)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
