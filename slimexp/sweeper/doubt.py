"""How sure the front of a sweep is, by the records of its trials: as the report tells its points apart."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial

from slimexp.analysis.row_scores import RowScores
from slimexp.analysis.section import Section, sections
from slimexp.analysis.uncertainty import DECIDED
from slimexp.record.record import read
from slimexp.sweeper.settings import Direction

_SAME = 1e-9  # relative difference of two means of the same figures, which only rounding explains


@dataclass(frozen=True)
class Doubt:
    """How sure a front is.

    Attributes:
        probabilities: Number of a trial -> probability that another one dominates it, where the records say.
        may_belong: Trials that are dominated, but not surely, the likeliest to belong to the front first.
    """

    probabilities: Mapping[int, float] = field(default_factory=dict)
    may_belong: Sequence[FrozenTrial] = ()


Judge = Callable[[Sequence[FrozenTrial], Sequence[FrozenTrial]], Doubt]


def sure(trials: Sequence[FrozenTrial], front: Sequence[FrozenTrial]) -> Doubt:
    """No doubt, where nothing is recorded."""
    return Doubt()


class ByRecords:
    """How sure a front is by the records of its trials, which are found by the values of the objectives.

    Args:
        runs: The runs folder of the trials.
        objectives: Metric -> which direction is better.
    """

    def __init__(self, runs: Path, objectives: Mapping[str, Direction]) -> None:
        self.runs, self.objectives = runs, dict(objectives)

    def __call__(self, trials: Sequence[FrozenTrial], front: Sequence[FrozenTrial]) -> Doubt:
        """The doubt of a front among trials that have finished."""
        try:
            found = sections(read(self.runs, quiet=True), rows=RowScores(self.runs))
        except FileNotFoundError:  # nothing was measured
            return Doubt()
        probabilities: dict[int, float] = {}
        for section in found:
            if places := self._places(section, trials):
                probabilities |= self._probabilities(section, places)
        on_front = {trial.number for trial in front}
        others = [trial for trial in trials if trial.number not in on_front]
        others = [trial for trial in others if probabilities.get(trial.number, 1.0) < 1 - DECIDED]
        return Doubt(probabilities, tuple(sorted(others, key=lambda trial: probabilities[trial.number])))

    def _places(self, section: Section, trials: Sequence[FrozenTrial]) -> dict[int, int]:
        """Number of a trial -> index of its point."""
        values = [[point.value(name) for name in self.objectives] for point in section.points]
        places = {}
        for trial in trials:
            same = (all(map(_is_same, trial.values, row)) for row in values)
            if (index := next((index for index, equal in enumerate(same) if equal), None)) is not None:
                places[trial.number] = index
        return places

    def _probabilities(self, section: Section, places: Mapping[int, int]) -> dict[int, float]:
        values = np.full((len(section.points), len(self.objectives)), np.nan)
        for index in places.values():
            values[index] = [section.points[index].value(name) for name in self.objectives]
        found = section.comparisons.probabilities(values, self.objectives)
        return {number: share for number, index in places.items() if (share := found[index]) is not None}


def is_open(probability: float) -> bool:
    """Whether the data leave open if a point is dominated, by the probability of it."""
    return DECIDED < probability < 1 - DECIDED


def _is_same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME)
