"""How far figures can be trusted: standard errors, and the probability that a point is dominated."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from slimexp.analysis import pareto

DRAWS = 1000  # a probability of 5 % then has a standard error of 0.7 points
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


def probability_dominated(
    means: ArrayLike, errors: ArrayLike, seeds: ArrayLike, directions: Sequence[str]
) -> list[float | None]:
    """Probability that another point dominates, for each point.

    By Monte Carlo with a fixed seed: errors are normal and independent; those over a few seeds follow Student's t,
    whose tails are the wider the fewer they are. Models graded on the same rows err together, which this ignores
    unless the errors are those of differences on the same rows (``front.errors_of``): without, the order of two points
    is more certain than it says, that one of many close points is the best less certain.

    Args:
        means: [N, K]; points with NaN are incomparable.
        errors: [N, K], standard errors; 0 where a figure is exact, NaN where the error is unknown.
        seeds: [N, K], number of values behind each mean.
        directions: ``min`` or ``max``, one per column.

    Returns:
        [N]; ``None`` for a point with NaN or an unknown error, and for one that a point of unknown error might
        dominate.
    """
    means, errors, seeds = np.asarray(means, float), np.asarray(errors, float), np.asarray(seeds)
    if not len(means):
        return []
    doubtful = np.isnan(errors) & ~np.isnan(means)
    complete = ~(np.isnan(errors) | np.isnan(means)).any(1)
    best = np.where(np.array(directions) == "min", -np.inf, np.inf)
    generator = np.random.default_rng(0)
    draws = DRAWS if (errors > 0).any() else 1
    least, most = np.zeros(len(means)), np.zeros(len(means))
    for _ in range(draws):
        students = generator.standard_t(np.maximum(seeds - 1, 1))
        noise = np.where(seeds > 1, students, generator.standard_normal(means.shape))
        points = means + np.where(doubtful, 0, errors) * noise
        dominated = pareto.dominated(np.where(complete[:, None], points, np.nan), directions)
        least += dominated
        most += pareto.dominated(np.where(doubtful, best, points), directions) if doubtful.any() else dominated
    determined = complete & (least == most)
    return [float(share) if certain else None for share, certain in zip(least / draws, determined, strict=True)]
