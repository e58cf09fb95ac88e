"""Pareto geometry on plain arrays: dominated points, the front, and its hypervolume.

Points are [N, K], one objective per column; ``directions`` names each column ``min`` or ``max``. The geometry is
that of moocore, with rules added for points with NaN, infinities, and no points at all.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dominated(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Which points are dominated: another point is nowhere worse and somewhere better.

    Equal points do not dominate one another. A point with NaN is incomparable: it neither dominates
    nor is dominated.

    Args:
        points: [N, K]; infinities are allowed.
        directions: ``min`` or ``max``, one per column.

    Returns:
        [N], whether each is dominated.

    Raises:
        ValueError: The shapes do not fit, or a direction is neither ``min`` nor ``max``.
    """
    from moocore import is_nondominated  # 50 ms, which a start that draws no front does not pay

    costs = _costs(points, directions)
    complete = ~np.isnan(costs).any(1)
    mask = np.zeros(len(costs), dtype=bool)
    if complete.any():
        # Dominance asks for order alone, so ranks do for values: moocore 0.3.2 crashes on infinities from 3-D on.
        ranks = [np.unique(column, return_inverse=True)[1] for column in costs[complete].T]
        mask[complete] = ~is_nondominated(np.column_stack(ranks), keep_weakly=True)
    return mask


def front(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.intp]:
    """Indices, ascending, of the points that no other dominates and that hold no NaN (equal points are all there).

    Raises:
        ValueError: As for ``dominated``.
    """
    return np.flatnonzero(~dominated(points, directions) & ~np.isnan(_costs(points, directions)).any(1))


def hypervolume(points: ArrayLike, reference: ArrayLike, directions: Sequence[str]) -> float:
    """Volume that the points dominate inside the box that ends at ``reference``; exact in any dimension.

    Args:
        points: [N, K]; points with NaN, or not better than the reference everywhere, add nothing.
        reference: [K], the reference point, which is worse than all points that should count.
        directions: ``min`` or ``max``, one per column.

    Returns:
        The volume, in the product of the units; ``inf`` where a counted point is infinitely good.

    Raises:
        ValueError: As for ``dominated``, or the reference holds NaN.
    """
    costs = _costs(points, directions)
    corner = _costs(np.asarray(reference, dtype=float)[None], directions)[0]
    if np.isnan(corner).any():
        raise ValueError(f"the reference point must not hold NaN, got {corner}")
    costs = costs[(costs < corner).all(1)]
    if not len(costs):
        return 0.0
    if np.isinf(corner).any() or np.isinf(costs).any():
        return float("inf")
    import moocore

    return float(moocore.hypervolume(costs, corner))


def _costs(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.float64]:
    """Points with every objective turned to be minimised."""
    array = np.asarray(points, dtype=float)
    if array.size == 0:
        array = array.reshape(0, len(directions))
    if array.ndim != 2 or array.shape[1] != len(directions):
        raise ValueError(f"points must be [N, {len(directions)}], one column per direction, got {array.shape}")
    if unknown := set(directions) - {"min", "max"}:
        raise ValueError(f"a direction must be 'min' or 'max', got {sorted(unknown)}")
    return array * np.array([1.0 if direction == "min" else -1.0 for direction in directions])
