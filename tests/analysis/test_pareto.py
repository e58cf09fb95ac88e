"""Pareto geometry against brute force, with ties, NaN, infinities and mixed directions."""

from itertools import product

import numpy as np
import pytest

from slimexp.analysis.pareto import dominated, front, hypervolume

pytestmark = pytest.mark.fast
INF, NAN = np.inf, np.nan


def beats(a: np.ndarray, b: np.ndarray, directions: tuple[str, ...]) -> bool:
    """The definition, one pair at a time."""
    if np.isnan(a).any() or np.isnan(b).any():
        return False
    better = [x < y if way == "min" else x > y for x, y, way in zip(a, b, directions, strict=True)]
    return any(better) and all(won or x == y for won, x, y in zip(better, a, b, strict=True))


@pytest.mark.parametrize("directions", [("min",), ("min", "max"), ("max", "max"), ("min", "max", "min")])
@pytest.mark.parametrize("seed", range(5))
def test_dominance_is_the_definition_over_all_pairs(directions: tuple[str, ...], seed: int) -> None:
    chance = np.random.default_rng(seed)
    points = chance.choice(
        [-INF, 0.0, 1.0, 2.0, 3.0, INF, NAN], (60, len(directions)), p=[0.05, *[0.21] * 4, 0.06, 0.05]
    )
    expected = np.array([any(beats(other, point, directions) for other in points) for point in points])
    assert (dominated(points, directions) == expected).all()
    complete = ~np.isnan(points).any(1)
    assert front(points, directions).tolist() == np.flatnonzero(~expected & complete).tolist()


def test_by_hand() -> None:
    points = [(1, 9), (3, 5), (3, 7), (8, 2), (9, 9), (INF, 0), (4, -INF)]  # size, error
    assert front(points, ("min", "min")).tolist() == [0, 1, 6]
    assert front(points[:6], ("min", "min")).tolist() == [0, 1, 3, 5]
    assert front(points[:6], ("max", "min")).tolist() == [5]
    assert front(points[:5], ("min", "max")).tolist() == [0]
    assert hypervolume(points[:5], (10, 10), ("min", "min")) == 9 * 1 + 7 * 4 + 2 * 3
    cube = [(0, 1, 1), (1, 0, 1), (1, 1, 0)]
    assert hypervolume(cube, (2, 2, 2), ["min"] * 3) == 4
    assert hypervolume([(0.5, -1, 2)], (1, -3, 0), ("min", "max", "max")) == 0.5 * 2 * 2


def test_equal_points_are_on_the_front_together() -> None:
    assert front([(1, 2), (1, 2), (2, 2), (0, 3)], ("min", "min")).tolist() == [0, 1, 3]


def test_no_points() -> None:
    assert dominated([], ("min", "min")).tolist() == []
    assert front(np.empty((0, 2)), ("min", "max")).tolist() == []
    assert hypervolume([], (1, 1), ("min", "min")) == 0


def grid_volume(points: np.ndarray, size: int) -> float:
    """Unit cells of the box [0, size]^K that some point dominates (to be minimised)."""
    cells = np.array(list(product(range(size), repeat=points.shape[1])))
    return float(sum((points <= cell).all(1).any() for cell in cells))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_hypervolume_is_the_count_of_dominated_cells(objectives: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    points = chance.integers(0, 7, (9, objectives)).astype(float)  # ties, and points beyond the reference
    assert hypervolume(points, [5] * objectives, ["min"] * objectives) == grid_volume(points, 5)


def test_hypervolume_with_mixed_directions_is_the_mirrored_one() -> None:
    points = np.random.default_rng(0).random((30, 3))
    mirrored = points * [1, -1, 1]
    straight = hypervolume(points, (1, 1, 1), ("min", "min", "min"))
    assert hypervolume(mirrored, (1, -1, 1), ("min", "max", "min")) == pytest.approx(straight)


def test_hypervolume_does_not_depend_on_order_or_dominated_points() -> None:
    points = np.random.default_rng(1).random((40, 3))
    whole = hypervolume(points, (1, 1, 1), ["min"] * 3)
    assert hypervolume(points[::-1], (1, 1, 1), ["min"] * 3) == pytest.approx(whole)
    assert hypervolume(points[front(points, ["min"] * 3)], (1, 1, 1), ["min"] * 3) == pytest.approx(whole)


def test_hypervolume_of_what_is_infinite_or_unknown() -> None:
    assert hypervolume([(0.5, NAN), (2, 2), (0, 1), (INF, 0)], (1, 1), ("min", "min")) == 0
    assert hypervolume([(-INF, 0.5), (-INF, 0.2)], (1, 1), ("min", "min")) == INF
    assert hypervolume([(-INF, 1.0)], (1, 1), ("min", "min")) == 0
    assert hypervolume([(0, 0)], (INF, 1), ("min", "min")) == INF
    with pytest.raises(ValueError, match="NaN"):
        hypervolume([(0, 0)], (NAN, 1), ("min", "min"))


def test_shapes_and_directions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        dominated([[1, 2, 3]], ("min", "min"))
    with pytest.raises(ValueError, match="'up'"):
        front([[1, 2]], ("min", "up"))
