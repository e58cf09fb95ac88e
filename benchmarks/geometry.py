"""Do fronts and hypervolumes agree with those of a second library?

    python -m benchmarks.geometry --sets 1000

Random sets of up to 24 points in 2, 3 and 4 objectives, with mixed directions, coordinates that tie (every other set
lies on a grid of 6 values) and infinities. The second library is Optuna: its front is ``Study.best_trials``, its
hypervolume has no public name. moocore, which ours stands on, is not asked by it.
"""

import argparse
import math
import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna._hypervolume import compute_hypervolume
from optuna.trial import create_trial

from slimexp.analysis.pareto import front, hypervolume

MOST_POINTS = 24
INFINITE = 0.02  # share of coordinates that are plus, and that are minus infinity
BEYOND = {True: 4.0, False: 0.9}  # the reference point: some of the points do not reach it


@dataclass(frozen=True)
class Agreement:
    """What a comparison came to.

    Attributes:
        sets: Sets compared.
        tied: Sets with two equal points on the front.
        infinite: Sets with an infinity.
        unbounded: Sets whose hypervolume is infinite by both.
        fronts_differ: Sets on whose front the two disagree.
        volume_differs: The largest relative difference of hypervolumes; infinite where one alone is.
    """

    sets: int
    tied: int
    infinite: int
    unbounded: int
    fronts_differ: int
    volume_differs: float


def compare(sets: int) -> Agreement:
    """Compare ``sets`` random sets, the same ones each time."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tied = infinite = unbounded = fronts_differ = 0
    volume_differs = 0.0
    for seed in range(sets):
        points, directions, reference = _drawn(seed)
        members = front(points, directions)
        fronts_differ += members.tolist() != _their_front(points, directions)
        tied += len(np.unique(points[members], axis=0)) < len(members)
        infinite += bool(np.isinf(points).any())
        volume, peer = hypervolume(points, reference, directions), _their_volume(points, reference, directions)
        unbounded += volume == peer == math.inf
        if volume != peer:
            volume_differs = max(volume_differs, abs(volume - peer) / peer if peer else math.inf)
    return Agreement(sets, tied, infinite, unbounded, fronts_differ, volume_differs)


def _drawn(seed: int) -> tuple[NDArray[np.float64], list[str], NDArray[np.float64]]:
    """Points [N, K], a direction for each of the 2 to 4 objectives, and a reference point."""
    chance = np.random.default_rng(seed)
    shape = int(chance.integers(1, MOST_POINTS + 1)), 2 + seed % 3
    grid = bool(chance.integers(2))
    points = chance.integers(0, 6, shape).astype(float) if grid else chance.random(shape)
    for infinity in (-np.inf, np.inf):
        points[chance.random(shape) < INFINITE] = infinity
    signs = chance.choice([1.0, -1.0], shape[1])
    return points * signs, ["min" if sign > 0 else "max" for sign in signs], np.full(shape[1], BEYOND[grid]) * signs


def _their_front(points: NDArray[np.float64], directions: list[str]) -> list[int]:
    study = optuna.create_study(directions=[f"{direction}imize" for direction in directions])
    study.add_trials([create_trial(values=point) for point in points.tolist()])
    return [trial.number for trial in study.best_trials]


def _their_volume(points: NDArray[np.float64], reference: NDArray[np.float64], directions: list[str]) -> float:
    """It minimises, and wants no point that is beyond the reference."""
    signs = np.where(np.array(directions) == "min", 1.0, -1.0)
    costs, corner = points * signs, reference * signs
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # it subtracts infinities, on purpose
        return float(compute_hypervolume(costs[(costs < corner).all(1)], corner))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000)
    found = compare(parser.parse_args().sets)
    print(f"{found.sets} sets, {found.tied} with ties on the front, {found.infinite} with infinities")
    print(f"fronts that differ: {found.fronts_differ}")
    print(f"hypervolumes: {found.unbounded} infinite by both, the others within {found.volume_differs:.1e}, relative")


if __name__ == "__main__":
    main()
