"""How far figures can be trusted: standard errors, and the probability that a point is dominated."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from slimexp.analysis import pareto

DECIDED = 0.05  # a point whose probability of being dominated lies between this and 1 - this is not separable


def standard_error(values: Sequence[float], own: Sequence[float | None]) -> float | None:
    """Standard error of the mean of ``values``: what other seeds and other test rows would have changed.

    Seeds differ by their spread, ``s / sqrt(n)``. The error of the measure itself (which rows were drawn, which
    requests were timed) is common to them, so averaging does not lessen it; the two add in quadrature.

    Args:
        values: One value per seed.
        own: Standard error of each value as its measure gives it, 0 where nothing was sampled; ``None`` where it is
            unknown.

    Returns:
        ``None`` for one value whose own error is unknown, because one value shows nothing of its spread.
    """
    errors = [error for error in own if error is not None]
    if len(errors) < len(own):
        errors = []
    if len(values) == 1:
        return errors[0] if errors else None
    between = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return math.hypot(between, float(np.mean(errors)) if errors else 0.0)


def probability_dominated(draws: ArrayLike, known: ArrayLike, directions: Sequence[str]) -> list[float | None]:
    """Share of draws in which another point dominates, for each point.

    Args:
        draws: [D, N, K], figures as other rows and seeds would have them, see ``resampling.Sampled``; points with NaN
            are incomparable.
        known: [N, K], whether it is known how the draws of a figure spread.
        directions: ``min`` or ``max``, one per column.

    Returns:
        [N]; ``None`` for a point with NaN or an unknown spread, and for one that a point of unknown spread might
        dominate.
    """
    draws, known = np.asarray(draws, float), np.asarray(known, bool)
    if not draws.shape[1]:
        return []
    absent = np.isnan(draws[0])
    doubtful = ~known & ~absent
    complete = ~(doubtful | absent).any(1)
    best = np.where(np.array(directions) == "min", -np.inf, np.inf)
    if (draws[:1] == draws)[:, ~absent].all():
        draws = draws[:1]
    least, most = np.zeros(len(known)), np.zeros(len(known))
    for points in draws:
        dominated = pareto.dominated(np.where(complete[:, None], points, np.nan), directions)
        least += dominated
        most += pareto.dominated(np.where(doubtful, best, points), directions) if doubtful.any() else dominated
    determined = complete & (least == most)
    return [float(share) if certain else None for share, certain in zip(least / len(draws), determined, strict=True)]
