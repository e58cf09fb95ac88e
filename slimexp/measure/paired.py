"""How much two models differ on the same questions, with an interval over the questions.

The error bars of two models say little of their difference, because what is hard for one is hard for the other: in a
comparison question by question that falls out.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from slimexp.data.rows import Rows
from slimexp.record.schema import DIFFERENCE

LEAST = 2  # questions of an interval
_RESAMPLES = 2000
_AT_ONCE = 2**22  # drawn questions in memory at once
_MANY = 10_000  # questions from which the bootstrap says nothing that the normal interval does not
_NORMAL_95 = 1.959964


def differences(own: Mapping[str, Rows], other: Mapping[str, Rows], suffix: str = DIFFERENCE) -> dict[str, float]:
    """``<figure>_difference``, own minus another model's, and its 95 % interval ``_low`` and ``_high``.

    Figures that both have and that are of the same questions; perplexities only where both count as many tokens.

    Args:
        own: Figure -> results of a model.
        other: The same of the other, which is the dense one unless ``suffix`` says otherwise.
        suffix: What the names end in.
    """
    figures = {}
    for name, mine in own.items():
        theirs = other.get(name)
        if theirs is None or not _comparable(mine, theirs):
            continue
        low, high = interval(mine, theirs)
        figures[name + suffix] = mine.figure - theirs.figure
        figures |= {f"{name}{suffix}_low": low, f"{name}{suffix}_high": high}
    return figures


def interval(own: Rows, dense: Rows) -> tuple[float, float]:
    """Ends of the 95 % interval of own minus dense, over the sampling of questions.

    Of right and wrong answers it is Tango's score interval for paired proportions (Tango 1998, Statistics in Medicine
    17:891-908, equations 12 and 16), which excludes 0 where McNemar's test without a continuity correction rejects it,
    and has a width also where no answer differs. Of other figures it is that of the paired bootstrap (Efron and
    Tibshirani 1993, chapter 13; of systems graded on the same sentences Koehn 2004): 2,000 draws of questions, each of
    which both models are graded on, percentiles of 2.5 and 97.5; the draws are the same for every pair of models. From
    10,000 questions on it is the normal interval of the linearized difference (Cochran 1977, chapter 6), to which the
    bootstrap's converges.

    Args:
        own: Results of a model, [N] of at least two questions.
        dense: Those of the other on the same questions, in the same order.
    """
    if _is_right_or_wrong(own) and _is_right_or_wrong(dense):
        gained = int(((own.tops == 1) & (dense.tops == 0)).sum())
        lost = int(((own.tops == 0) & (dense.tops == 1)).sum())
        return tango(gained, lost, len(own.tops))
    if len(own.tops) >= _MANY:
        error = math.sqrt(float(((_influence(own) - _influence(dense)) ** 2).sum()))
        difference = own.figure - dense.figure
        return difference - _NORMAL_95 * error, difference + _NORMAL_95 * error
    drawn = np.concatenate([_figure(own, rows) - _figure(dense, rows) for rows in _draws(len(own.tops))])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def tango(gained: int, lost: int, questions: int, z: float = _NORMAL_95) -> tuple[float, float]:
    """Score interval of ``(gained - lost) / questions``, by Tango 1998.

    Args:
        gained: Questions that only the one model answers rightly.
        lost: Questions that only the other does.
        questions: All questions.
        z: Half the interval in standard errors.
    """
    from scipy.optimize import brentq

    observed = (gained - lost) / questions

    def statistic(difference: float) -> float:
        """The score of ``difference``, whose nuisance parameter is its maximum-likelihood estimate."""
        b = -(gained + lost) + (2 * questions - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        only_lost = (math.sqrt(max(b * b - 8 * questions * c, 0.0)) - b) / (4 * questions)
        variance = questions * (2 * only_lost + difference * (1 - difference))
        distance = gained - lost - questions * difference
        return distance / math.sqrt(variance) if distance and variance > 0 else math.inf * distance if distance else 0.0

    def end(of_range: float, target: float) -> float:
        if observed == of_range:
            return observed
        inner = of_range * (1 - 1e-12)  # at the end itself there is no variance
        at_end = statistic(inner) - target
        return inner if at_end * -target >= 0 else float(brentq(lambda d: statistic(d) - target, observed, inner))

    return end(-1.0, z), end(1.0, -z)


def _comparable(own: Rows, dense: Rows) -> bool:
    same = len(own.questions) >= LEAST and np.array_equal(own.questions, dense.questions)
    return same and own.exponential == dense.exponential and np.array_equal(own.bottoms, dense.bottoms)


def _is_right_or_wrong(rows: Rows) -> bool:
    return not rows.exponential and bool((rows.bottoms == 1).all() and np.isin(rows.tops, (0, 1)).all())


def _draws(questions: int) -> Iterator[NDArray[np.int64]]:
    """Questions with replacement, [draws, N] at a time."""
    generator = np.random.default_rng(0)
    at_once = max(1, _AT_ONCE // questions)
    for start in range(0, _RESAMPLES, at_once):
        yield generator.integers(questions, size=(min(at_once, _RESAMPLES - start), questions))


def _figure(rows: Rows, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """The figure over the questions of each draw, [draws]."""
    bottoms = rows.bottoms[drawn].sum(1)
    ratios = np.divide(rows.tops[drawn].sum(1), bottoms, out=np.zeros_like(bottoms), where=bottoms > 0)
    return np.exp(np.minimum(ratios, 700.0)) if rows.exponential else ratios


def _influence(rows: Rows) -> NDArray[np.float64]:
    """What each question adds to the figure's deviation, [N]."""
    ratio = rows.tops.sum() / rows.bottoms.sum()
    slope = rows.figure if rows.exponential else 1.0
    return slope * (rows.tops - ratio * rows.bottoms) / rows.bottoms.sum()
