"""Pareto geometry on plain arrays: who is dominated, who is on the front, how much the front covers.

Points are [N, K], one objective per column; ``directions`` names each column ``min`` or ``max``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dominated(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Which points another point beats: nowhere worse and somewhere better.

    Equal points do not dominate one another. A point with NaN is incomparable: it neither dominates
    nor is dominated.

    Args:
        points: [N, K]; infinities are allowed.
        directions: ``min`` or ``max``, one per column.

    Returns:
        [N].

    Raises:
        ValueError: The shapes do not fit, or a direction is neither ``min`` nor ``max``.
    """
    costs = _costs(points, directions)
    # comparisons with NaN are false, so a row with NaN is on neither side
    return np.array([bool(((costs <= row).all(1) & (costs < row).any(1)).any()) for row in costs], dtype=bool)


def front(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.intp]:
    """Indices, ascending, of the points that no other dominates and that hold no NaN (equal points are all there).

    Raises:
        ValueError: As ``dominated``.
    """
    return np.flatnonzero(~dominated(points, directions) & ~np.isnan(_costs(points, directions)).any(1))


def hypervolume(points: ArrayLike, reference: ArrayLike, directions: Sequence[str]) -> float:
    """Volume that the points dominate inside the box that ends at ``reference``; exact in any dimension.

    Slices along the last objective, lowest first, each slice being a volume of one dimension less (Zitzler
    & Thiele 1998; the slicing of While et al. 2006): O(N log N) in 2-D, O(N^2 log N) in 3-D.

    Args:
        points: [N, K]; points with NaN, or not better than the reference everywhere, add nothing.
        reference: [K], a point that is worse than all that should count.
        directions: ``min`` or ``max``, one per column.

    Returns:
        The volume, in the product of the units; ``inf`` where a counted point is infinitely good.

    Raises:
        ValueError: As ``dominated``, or the reference holds NaN.
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
    return _volume(costs, corner)


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


def _volume(costs: NDArray[np.float64], corner: NDArray[np.float64]) -> float:
    """Hypervolume of finite points that are all strictly below ``corner``."""
    costs = costs[np.argsort(costs[:, -1], kind="stable")]
    depths = np.diff(np.append(costs[:, -1], corner[-1]))  # how far each slice reaches
    if costs.shape[1] == 1:
        return float(depths.sum())
    if costs.shape[1] == 2:
        return float((depths * (corner[0] - np.minimum.accumulate(costs[:, 0]))).sum())
    slices = ((count, depth) for count, depth in enumerate(depths, start=1) if depth > 0)
    return float(sum(depth * _volume(costs[:count, :-1], corner[:-1]) for count, depth in slices))
