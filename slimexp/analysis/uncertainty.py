"""How far figures can be trusted: standard errors, and the probability that a point is dominated."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from slimexp.analysis import pareto

DRAWS = 1000  # a probability of 5 % is then known to 0.7 points
DECIDED = 0.05  # a point whose probability of being dominated lies between this and 1 - this is not separable


def standard_error(values: Sequence[float], own: Sequence[float | None]) -> float | None:
    """Standard error of the mean of ``values``: what other seeds and other test rows would have changed.

    Seeds differ by their spread, ``s / sqrt(n)``. The error of the measure itself (which rows were drawn, which
    requests were timed) is common to them, so averaging does not lessen it; the two add in quadrature.

    Args:
        values: One per seed.
        own: Standard error of each by its measure, 0 where nothing was sampled; ``None`` where it is not known.

    Returns:
        ``None`` for one value whose own error is not known: one value tells nothing of its spread.
    """
    known = [error for error in own if error is not None]
    if len(known) < len(own):
        known = []
    if len(values) == 1:
        return known[0] if known else None
    between = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return math.hypot(between, float(np.mean(known)) if known else 0.0)


def probability_dominated(
    means: ArrayLike, errors: ArrayLike, seeds: ArrayLike, directions: Sequence[str]
) -> list[float | None]:
    """Probability that another point dominates, for each point.

    By Monte Carlo with a fixed seed: errors are normal and independent; those over a few seeds follow Student's t,
    whose tails are the wider the fewer they are. Models graded on the same rows err together, which this does not see:
    of two points it is less sure than the data allow, of many that lie close it is surer that none but one is best.

    Args:
        means: [N, K]; points with NaN are incomparable.
        errors: [N, K], standard errors; 0 where a figure is exact, NaN where nothing is known.
        seeds: [N, K], values behind each mean.
        directions: ``min`` or ``max``, one per column.

    Returns:
        ``None`` for a point with NaN or an unknown error, and for one that a point of unknown error might dominate.
    """
    means, errors, seeds = np.asarray(means, float), np.asarray(errors, float), np.asarray(seeds)
    if not len(means):
        return []
    doubtful = np.isnan(errors) & ~np.isnan(means)
    known = ~(np.isnan(errors) | np.isnan(means)).any(1)
    best = np.where(np.array(directions) == "min", -np.inf, np.inf)
    chance = np.random.default_rng(0)
    draws = DRAWS if (errors > 0).any() else 1
    least, most = np.zeros(len(means)), np.zeros(len(means))
    for _ in range(draws):
        students = chance.standard_t(np.maximum(seeds - 1, 1))
        noise = np.where(seeds > 1, students, chance.standard_normal(means.shape))
        points = means + np.where(doubtful, 0, errors) * noise
        beaten = pareto.dominated(np.where(known[:, None], points, np.nan), directions)
        least += beaten
        most += pareto.dominated(np.where(doubtful, best, points), directions) if doubtful.any() else beaten
    sure = known & (least == most)
    return [float(share) if one else None for share, one in zip(least / draws, sure, strict=True)]
