"""How two points compare: the one place that answers it, for front, report, ``select``, ``clean`` and sweeps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slimexp.analysis.front import Direction
from slimexp.analysis.point import Point
from slimexp.analysis.resampling import APART, Sampled, beside, sampled
from slimexp.analysis.uncertainty import probability_dominated
from slimexp.data.paired import interval, is_right_or_wrong
from slimexp.data.rows import Rows
from slimexp.record.figures import BITS_PER_BYTE, KEPT, PERPLEXITY, RATIO
from slimexp.record.schema import DIFFERENCE

# What a comparison rests on: the same rows; differences of both from the dense model on the same rows; or nothing in
# common, so that the errors of both add.
Basis = Literal["rows", "dense", "unpaired"]
_BESIDE_DENSE = {f"{metric}{RATIO}": metric for metric in (PERPLEXITY, BITS_PER_BYTE)}  # figure -> metric it is of
_ENDS = [2.5, 97.5]  # percentiles of the draws
_SAME = 1e-6  # relative difference of a figure and that of its rows, which only rounding explains


class Interval(NamedTuple):
    """A 95 % interval.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        basis: What it rests on.
    """

    low: float
    high: float
    basis: Basis


@dataclass(frozen=True)
class Comparison:
    """A metric of a point less that of another.

    Attributes:
        difference: The difference.
        low: Lower end of its 95 % interval, over rows and, where there are several, seeds.
        high: Upper end of the same.
        basis: What the interval rests on.
        direction: Whether a smaller (``min``) or larger (``max``) metric is better.
    """

    difference: float
    low: float
    high: float
    basis: Basis
    direction: Direction

    @property
    def separable(self) -> bool:
        """Whether the two can be told apart: the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    @property
    def worse(self) -> bool:
        """Whether the point is surely worse than the other."""
        return self.low > 0 if self.direction == "min" else self.high < 0

    @property
    def worst(self) -> float:
        """By how much the point may be worse than the other: the worse end of the interval."""
        return self.high if self.direction == "min" else -self.low

    def not_worse(self, by: float) -> bool:
        """Whether the point is surely not worse than the other by more than ``by``: a test of non-inferiority.

        It holds where the whole 95 % interval lies on the better side of the margin, which is a test of one side at
        2.5 %, as is usual (ICH E9 1998, 3.3.2). A point that is not separable from the other need not pass.

        Args:
            by: The margin, in units of the metric.

        Raises:
            ValueError: The margin is negative.
        """
        if not by >= 0:
            raise ValueError(f"the margin by which a point may be worse must be >= 0, got {by}")
        return self.worst <= by


class Comparisons:
    """How points compare, in any metric.

    Args:
        points: N points.
        better: Metric -> which direction is better.
        dense: Index of the dense model that each point is held against; ``None`` where it is not among them.
        rows: Point and metric -> results row by row, one for each seed; empty where they are not kept.
        headline: The metric that retention is of.
        guess: Headline of the best guess without a model.
    """

    def __init__(
        self,
        points: Sequence[Point],
        *,
        better: Callable[[str], Direction],
        dense: Sequence[int | None],
        rows: Callable[[Point, str], Sequence[Rows]],
        headline: str,
        guess: float,
    ) -> None:
        self._points, self._better, self._dense, self._rows = list(points), better, list(dense), rows
        self._headline, self._guess = headline, guess
        self._samples: dict[str, Sampled] = {}
        self._results: dict[str, list[Sequence[Rows]]] = {}

    def compare(self, own: int, other: int, metric: str) -> Comparison | None:
        """A point less another, by their indices; ``None`` where a figure, or how far it can be trusted, is unknown."""
        sample = self._sample(metric)
        difference = float(sample.means[own] - sample.means[other])
        basis = self._basis(sample, own, other)
        if np.isnan(difference) or (basis == "unpaired" and np.isnan(sample.rows[[own, other]]).any()):
            return None
        if basis == "rows" and (pair := self._right_or_wrong(own, other, metric)) is not None:
            low, high = interval(*pair)
        elif basis == "dense" and (recorded := self._recorded(own, other, metric)) is not None:
            low, high = recorded
        else:
            drawn = sample.draws[:, own] - sample.draws[:, other]
            rows = float(drawn.var()) if basis != "unpaired" else float(sample.rows[[own, other]].sum())
            low, high = _ends(difference, None if basis == "unpaired" else drawn, rows, sample, [own, other])
        return Comparison(difference, low, high, basis, self._better(metric))

    def beside_dense(self, index: int, metric: str) -> Comparison | None:
        """A point less its dense model; ``None`` for that itself, and where it is not among the points."""
        home = self._dense[index]
        return None if home is None or home == index else self.compare(index, home, metric)

    def interval(self, index: int, metric: str) -> Interval | None:
        """95 % interval of a figure of a point; ``None`` where it is unknown.

        Of retention and of ratios to the dense model it is that of both drawn on the same rows.
        """
        sample = self._sample(metric)
        if np.isnan([sample.means[index], sample.rows[index]]).any():
            return None
        drawn = sample.draws[:, index] if sample.graded[index] else None
        ends = _ends(float(sample.means[index]), drawn, float(sample.rows[index]), sample, [index])
        apart = sample.group[index] == APART
        return Interval(*ends, "rows" if sample.graded[index] else "unpaired" if apart else "dense")

    def probabilities(self, values: NDArray[np.float64], axes: Mapping[str, Direction]) -> list[float | None]:
        """Probability that a point is dominated, for each point, see ``uncertainty.probability_dominated``.

        Args:
            values: [N, K], the ``front.objectives`` of the points: one that is NaN there is incomparable.
            axes: Metric -> which direction is better, of K metrics.
        """
        generator = np.random.default_rng(0)
        samples = [self._sample(metric) for metric in axes]
        draws = np.stack([sample.joint(generator) for sample in samples], 2)
        draws[:, np.isnan(values)] = np.nan
        known = np.stack([sample.known for sample in samples], 1)
        return probability_dominated(draws, known, list(axes.values()))

    def bases(self, metric: str) -> dict[Basis, int]:
        """Basis -> how many points rest on it in a metric whose error is not 0."""
        sample = self._sample(metric)
        counts: dict[Basis, int] = {}
        for index in range(len(self._points)):
            if not np.isnan(sample.means[index]) and sample.rows[index] + sample.seeds[index] != 0:
                basis = self._basis(sample, index, index)
                counts[basis] = counts.get(basis, 0) + 1
        return counts

    def _basis(self, sample: Sampled, own: int, other: int) -> Basis:
        if sample.group[own] != sample.group[other] or sample.group[own] == APART:
            return "unpaired"
        return "rows" if sample.graded[[own, other]].all() else "dense"

    def _sample(self, metric: str) -> Sampled:
        if metric not in self._samples:
            of = self._headline if metric == KEPT else _BESIDE_DENSE.get(metric)
            if of not in (None, metric):  # a record from elsewhere may call its headline what is retention here
                made = beside(self._sample(of), self._points, metric, self._dense, self._guess)
            else:
                self._results[metric] = [self._of_rows(point, metric) for point in self._points]
                made = sampled(self._points, metric, self._dense, self._results[metric])
            self._samples[metric] = made
        return self._samples[metric]

    def _of_rows(self, point: Point, metric: str) -> Sequence[Rows]:
        """Results row by row of all seeds, where the figure of the point follows from them."""
        rows = self._rows(point, metric) if metric in point.figures else ()
        if len(rows) != len(point.seeds) or not rows:
            return ()
        figure, value = np.mean([row.figure for row in rows]), point.value(metric)
        return rows if abs(figure - value) <= _SAME * max(abs(value), 1e-3) else ()

    def _right_or_wrong(self, own: int, other: int, metric: str) -> tuple[Rows, Rows] | None:
        """Results of two single models, where each row is right or wrong."""
        pair = [self._results[metric][index] for index in (own, other)] if metric in self._results else []
        if not pair or any(len(rows) != 1 for rows in pair):
            return None
        mine, theirs = (rows[0] for rows in pair)
        return (mine, theirs) if is_right_or_wrong(mine) and is_right_or_wrong(theirs) else None

    def _recorded(self, own: int, other: int, metric: str) -> tuple[float, float] | None:
        """Ends of a difference as they were recorded, where one of the two is the other's dense model.

        Of several seeds they are the widest; ``None`` where none were recorded.
        """
        if self._dense[own] != other:
            turned = self._recorded(other, own, metric) if self._dense[other] == own else None
            return None if turned is None else (-turned[1], -turned[0])
        figures = self._points[own].figures
        if metric + DIFFERENCE not in figures:
            return None
        return figures[f"{metric}{DIFFERENCE}_low"].low, figures[f"{metric}{DIFFERENCE}_high"].high


def _ends(
    value: float, drawn: NDArray[np.float64] | None, rows: float, sample: Sampled, of: Sequence[int]
) -> tuple[float, float]:
    """Ends of the 95 % interval of a value.

    Of single seeds they are percentiles of the draws over rows, where there are any. Else they are Student's, with the
    degrees of freedom of a sum of variances (Satterthwaite 1946; Welch 1947), of which those of rows are many.

    Args:
        value: The value.
        drawn: [RESAMPLES], the value over rows; ``None`` where it is normal.
        rows: Its variance over rows.
        sample: What the seeds add.
        of: Indices of the points that the value is of.
    """
    from scipy.stats import t

    seeds = sample.seeds[list(of)]
    if drawn is not None and not seeds.any():
        low, high = np.percentile(drawn, _ENDS)
        return float(low), float(high)
    doubt = float((seeds**2 / sample.freedom[list(of)]).sum())
    freedom = (rows + seeds.sum()) ** 2 / doubt if doubt else np.inf
    half = float(t.ppf(_ENDS[1] / 100, freedom) * np.sqrt(rows + seeds.sum()))
    return value - half, value + half
