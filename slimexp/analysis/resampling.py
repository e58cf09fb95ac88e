"""A metric of several points as other rows and other seeds would have it.

Models that were graded on the same rows err together, for what is hard for one is hard for the other. Where the results
of single rows are kept, all models are drawn on the same rows, with replacement, and their figures made anew from those
rows, see ``data.paired.resampled``: what they have in common falls out of every difference. A point without them has
its difference from the dense model on the same rows where its records hold one, and else its own standard error, as if
it were independent of the others.

Seeds are a second level. Two to five are too few to be drawn with replacement: three seeds drawn so have two thirds of
the variance that they stand for, and none of its doubt. What they add to the variance is estimated instead, as the
variance between them less what the rows of each would make of it alone, and it follows Student's t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimexp.analysis.grouping import grouped
from slimexp.analysis.point import Point
from slimexp.data.paired import LEAST, RESAMPLES, resampled
from slimexp.data.rows import Rows
from slimexp.record.figures import KEPT
from slimexp.record.schema import DIFFERENCE

APART = -1  # group of a point that has nothing in common with others
_LEAST_GAIN = 1e-3  # of a draw, as a share of the dense model's: retention of none has no value


@dataclass(frozen=True)
class Sampled:
    """A metric of N points, with what rows and seeds add to it.

    Attributes:
        means: [N], NaN where the metric was not measured.
        draws: [RESAMPLES, N], over rows.
        rows: [N], variance over rows; NaN where it is unknown.
        seeds: [N], variance that seeds add, 0 for one seed.
        freedom: [N], degrees of freedom of ``seeds``.
        group: [N]; draws of points of one group have rows in common, those of ``APART`` none.
        graded: [N], whether the draws are of kept rows.
    """

    means: NDArray[np.float64]
    draws: NDArray[np.float64]
    rows: NDArray[np.float64]
    seeds: NDArray[np.float64]
    freedom: NDArray[np.float64]
    group: NDArray[np.int64]
    graded: NDArray[np.bool_]

    @property
    def known(self) -> NDArray[np.bool_]:
        """[N], whether it is known how the draws of a point spread beside those of all others."""
        return ~np.isnan(self.rows) | (self.group != APART)

    def joint(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """[RESAMPLES, N]: draws over rows and seeds."""
        return self.draws + np.sqrt(self.seeds) * generator.standard_t(self.freedom, self.draws.shape)


def sampled(
    points: Sequence[Point], metric: str, dense: Sequence[int | None], results: Sequence[Sequence[Rows]]
) -> Sampled:
    """Draw a metric that was measured.

    Args:
        points: N points.
        metric: The metric.
        dense: Index of the dense model of each point; ``None`` where it is not among them.
        results: Results of each point row by row, one for each seed; empty where they are not kept.
    """
    sample = _apart(points, metric)
    kept = [index for index, rows in enumerate(results) if rows and len(rows[0].tops) >= LEAST]
    kept = [index for index in kept if len({row.asked for row in results[index]}) == 1]
    for number, members in enumerate(grouped(kept, lambda index: results[index][0].asked)):
        columns = resampled([row for index in members for row in results[index]], number)
        ends = np.cumsum([len(results[index]) for index in members])[:-1]
        for index, own in zip(members, np.split(columns, ends, axis=1), strict=True):
            rows = results[index]
            sample.draws[:, index] = own.mean(1) + sample.means[index] - np.mean([row.figure for row in rows])
            sample.rows[index] = sample.draws[:, index].var()
            sample.seeds[index], sample.freedom[index] = _between(rows), max(len(rows) - 1, 1)
            sample.group[index], sample.graded[index] = number, True
    _beside_dense(sample, points, metric, dense)
    return sample


def beside(sample: Sampled, points: Sequence[Point], metric: str, dense: Sequence[int | None], guess: float) -> Sampled:
    """Draw a figure beside the dense model's, which is drawn on the same rows: retention, or a ratio.

    Args:
        sample: The metric that it is of.
        points: N points.
        metric: ``kept``, see ``record.figures.retention``, or a ratio to the dense model.
        dense: Index of the dense model of each point.
        guess: The metric of the best guess, from which retention counts; it is taken as exact.
    """
    made, origin = _apart(points, metric), guess if metric == KEPT else 0.0
    for index, home in enumerate(dense):
        if home is None or sample.group[index] == APART or sample.group[index] != sample.group[home]:
            continue
        gain = sample.means[home] - origin
        if not gain:
            continue
        value = (sample.means[index] - origin) / gain
        gains = np.maximum((sample.draws[:, home] - origin) / gain, _LEAST_GAIN)
        made.draws[:, index] = (sample.draws[:, index] - origin) / gain / gains - value + made.means[index]
        made.rows[index] = made.draws[:, index].var()
        seeds = 0.0 if index == home else sample.seeds[index] + value**2 * sample.seeds[home]
        made.seeds[index], made.freedom[index] = seeds / gain**2, sample.freedom[index]
        made.group[index], made.graded[index] = sample.group[index], sample.graded[index] & sample.graded[home]
    return made


def _apart(points: Sequence[Point], metric: str) -> Sampled:
    """A metric by the standard errors of the points, each by itself; of several seeds it is theirs."""
    means = np.array([point.value(metric) for point in points], dtype=float)
    errors = np.array([point.error(metric) for point in points], dtype=float)
    counts = np.array([point.figures[metric].seeds if metric in point.figures else 1 for point in points])
    several = (counts > 1) & (errors > 0)
    rows = np.where(several, 0.0, errors**2)
    noise = _generator(metric).standard_normal((RESAMPLES, len(points)))
    return Sampled(
        means=means,
        draws=means + np.sqrt(np.nan_to_num(rows)) * noise,
        rows=rows,
        seeds=np.where(several, np.nan_to_num(errors) ** 2, 0.0),
        freedom=np.maximum(counts - 1, 1).astype(float),
        group=np.full(len(points), APART),
        graded=np.zeros(len(points), dtype=bool),
    )


def _beside_dense(sample: Sampled, points: Sequence[Point], metric: str, dense: Sequence[int | None]) -> None:
    """Move points without rows, but with a difference from the dense model, along with its draws."""
    errors = np.array([point.error(metric + DIFFERENCE) for point in points], dtype=float)
    moved = [i for i, home in enumerate(dense) if home not in (None, i) and not sample.graded[i] and errors[i] > 0]
    noise = _generator(metric + DIFFERENCE).standard_normal((RESAMPLES, len(points))) if moved else np.empty(0)
    for home in sorted({home for i in moved if (home := dense[i]) is not None}):
        members = [i for i in moved if dense[i] == home]
        others = {i for i, point in enumerate(points) if metric in point.figures} - {home, *members}
        if np.isnan(sample.means[home]) or (np.isnan(sample.rows[home]) and others):
            continue  # beside those others the error of the dense model counts, and it is not known
        if sample.group[home] == APART:
            sample.group[home] = sample.group.max() + 1
        for i in members:
            several = points[i].figures[metric + DIFFERENCE].seeds > 1
            sample.draws[:, i] = sample.draws[:, home] - sample.means[home] + sample.means[i]
            sample.draws[:, i] += 0.0 if several else errors[i] * noise[:, i]
            own = sample.rows[i] + sample.seeds[i]  # of the figure alone, in which what it shares with dense counts
            sample.seeds[i] = errors[i] ** 2 if several else 0.0
            sample.rows[i] = np.maximum(own - sample.seeds[i], 0.0)
            sample.group[i] = sample.group[home]


def _between(rows: Sequence[Rows]) -> float:
    """Variance of a mean over seeds that is due to them: what is between them less what rows make of it alone."""
    if len(rows) == 1:
        return 0.0
    of_rows = float(np.stack([row.influence() for row in rows]).var(0, ddof=1).sum())
    return max(float(np.var([row.figure for row in rows], ddof=1)) - of_rows, 0.0) / len(rows)


def _generator(name: str) -> np.random.Generator:
    """Chance that is the same for a name at every call, and another for another name."""
    return np.random.default_rng(list(name.encode()))
