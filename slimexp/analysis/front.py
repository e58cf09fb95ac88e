"""The front of a section's points: their objectives, and the volume that they dominate."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slimexp.analysis import pareto
from slimexp.analysis.point import Point
from slimexp.record.figures import KEPT
from slimexp.record.schema import LARGEST

Direction = Literal["min", "max"]


def objectives(
    points: Sequence[Point], axes: Mapping[str, Direction], headline: str, trivial: float, direction: Direction
) -> NDArray[np.float64]:
    """Values of the points on the axes, from which the front is computed.

    Args:
        points: N points.
        axes: Metric -> which direction is better, of K metrics.
        headline: The measure of quality.
        trivial: Headline of the trivial guess.
        direction: Which direction of the headline is better.

    Returns:
        [N, K]; NaN where a metric was not measured, and everywhere for a point that is no better than the trivial
        guess, which needs no model at all.
    """
    values = np.array([[point.value(metric) for metric in axes] for point in points])
    quality = np.array([point.value(headline) for point in points])
    values[quality >= trivial if direction == "min" else quality <= trivial] = np.nan
    return values


def corner(points: Sequence[Point], axes: Mapping[str, Direction], headline: str, trivial: float) -> list[float] | None:
    """The reference point of the hypervolume: the worst value of each axis that still counts.

    It is the trivial guess for the headline and the dense model, of several the worst, for any other metric; ``None``
    where a metric was measured of no dense model.
    """
    values = []
    for metric, direction in axes.items():
        dense = [point.value(metric) for point in points if point.dense and metric in point.figures]
        candidates = [trivial] if metric == headline else dense
        if not candidates:
            return None
        values.append(max(candidates) if direction == "min" else min(candidates))
    return values


def volume(values: NDArray[np.float64], corner: Sequence[float], directions: Sequence[Direction]) -> float | None:
    """Hypervolume that the points dominate inside ``corner``, with each axis in units of it.

    ``None`` where it is infinite, because a dense figure is next to nothing.
    """
    units = np.array([abs(end) or 1.0 for end in corner])
    with np.errstate(over="ignore"):
        dominated = pareto.hypervolume(values / units, np.array(corner) / units, directions)
    return dominated if np.isfinite(dominated) else None


def finished(points: Sequence[Point]) -> list[int]:
    """Indices of the compressed points, in the order in which they finished."""
    return sorted((i for i, point in enumerate(points) if not point.dense), key=lambda i: points[i].time)


def hypervolume(points: Sequence[Point], quality: str) -> float | None:
    """Hypervolume of size ratio and quality, from dense size without any quality to dense quality for no bytes.

    It lies between 0 and 1 unless a point is better than the dense model; ``None`` where no point has both figures.

    Args:
        points: Points of a section.
        quality: The figure of quality beside the dense model; of one where smaller is better (``perplexity_ratio``)
            the reciprocal counts, which is 1 for dense quality as well.
    """
    rows = _size_and_quality(points, quality)
    return None if np.isnan(rows).any(1).all() else pareto.hypervolume(rows, (1.0, 0.0), ("min", "max"))


def hypervolume_history(points: Sequence[Point], quality: str) -> list[float]:
    """``hypervolume`` after each compressed point, in the order in which they finished; empty where it is ``None``.

    Only the front of the points so far is carried on, so that the time for a long sweep is not quadratic in it.
    """
    if hypervolume(points, quality) is None:
        return []
    front, history = np.empty((0, 2)), []
    for row in _size_and_quality([points[index] for index in finished(points)], quality):
        front = np.vstack([front, row])
        front = front[pareto.front(front, ("min", "max"))]
        history.append(pareto.hypervolume(front, (1.0, 0.0), ("min", "max")))
    return history


def _size_and_quality(points: Iterable[Point], quality: str) -> NDArray[np.float64]:
    """[N, 2]: share of the dense bytes, and quality, of which 1 is that of the dense model and more is better."""
    rows = np.array([(point.value("size_ratio"), point.value(quality)) for point in points]).reshape(-1, 2)
    if quality != KEPT:
        rows[:, 1] = 1 / np.maximum(rows[:, 1], 1 / LARGEST)
    return rows
