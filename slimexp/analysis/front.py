"""The front of a section's points: their values, how sure dominance is, and the volume that they dominate."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slimexp.analysis import pareto
from slimexp.analysis.point import Point
from slimexp.analysis.uncertainty import probability_dominated

Direction = Literal["min", "max"]


def objectives(
    points: Sequence[Point], axes: Mapping[str, Direction], headline: str, guess: float, way: Direction
) -> NDArray[np.float64]:
    """[N, K]; NaN for what is no better than the trivial guess, as it is beaten by no model at all."""
    values = np.array([[point.value(metric) for metric in axes] for point in points])
    quality = np.array([point.value(headline) for point in points])
    values[quality >= guess if way == "min" else quality <= guess] = np.nan
    return values


def probabilities(
    points: Sequence[Point], axes: Mapping[str, Direction], values: NDArray[np.float64]
) -> list[float | None]:
    errors = [[point.error(metric) for metric in axes] for point in points]
    seeds = [[point.figures[metric].seeds if metric in point.figures else 0 for metric in axes] for point in points]
    return probability_dominated(values, errors, seeds, list(axes.values()))


def corner(points: Sequence[Point], axes: Mapping[str, Direction], headline: str, guess: float) -> list[float] | None:
    """The worst that counts, see ``Section``; of several dense models the worst."""
    values = []
    for metric, way in axes.items():
        dense = [point.value(metric) for point in points if point.dense and metric in point.figures]
        candidates = [guess] if metric == headline else dense
        if not candidates:
            return None
        values.append(max(candidates) if way == "min" else min(candidates))
    return values


def volume(values: NDArray[np.float64], corner: Sequence[float], ways: Sequence[Direction]) -> float | None:
    units = np.array([abs(end) or 1.0 for end in corner])
    inside = pareto.hypervolume(values / units, np.array(corner) / units, ways)
    return inside if np.isfinite(inside) else None  # infinite where a dense figure is next to nothing


def finished(points: Sequence[Point]) -> list[int]:
    return sorted((i for i, point in enumerate(points) if not point.dense), key=lambda i: points[i].time)


def _size_and_quality(points: Iterable[Point]) -> NDArray[np.float64]:
    """[N, 2]: share of the dense bytes, share of the dense gain."""
    return np.array([(point.value("size_ratio"), point.value("kept")) for point in points]).reshape(-1, 2)


def hypervolume(points: Sequence[Point]) -> float | None:
    rows = _size_and_quality(points)
    return None if np.isnan(rows).any(1).all() else pareto.hypervolume(rows, (1.0, 0.0), ("min", "max"))


def hypervolume_history(points: Sequence[Point]) -> list[float]:
    """Of the points so far only their front is carried on, so that a long sweep is not quadratic."""
    if hypervolume(points) is None:
        return []
    front, history = np.empty((0, 2)), []
    for row in _size_and_quality(points[index] for index in finished(points)):
        front = np.vstack([front, row])
        front = front[pareto.front(front, ("min", "max"))]
        history.append(pareto.hypervolume(front, (1.0, 0.0), ("min", "max")))
    return history
