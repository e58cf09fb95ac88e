"""How much two models differ on the same questions, with an interval over the questions.

The error bars of two models say little of their difference, because what is hard for one is hard for the other: in a
comparison question by question that falls out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from slimexp.data.rows import Rows
from slimexp.record.schema import DIFFERENCE

LEAST = 2  # questions of an interval
RESAMPLES = 2000  # draws of the bootstrap
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
    if is_right_or_wrong(own) and is_right_or_wrong(dense):
        gained = int(((own.tops == 1) & (dense.tops == 0)).sum())
        lost = int(((own.tops == 0) & (dense.tops == 1)).sum())
        return tango(gained, lost, len(own.tops))
    if len(own.tops) >= _MANY:
        error = math.sqrt(float(((own.influence() - dense.influence()) ** 2).sum()))
        difference = own.figure - dense.figure
        return difference - _NORMAL_95 * error, difference + _NORMAL_95 * error
    drawn = resampled([own, dense])
    low, high = np.percentile(drawn[:, 0] - drawn[:, 1], [2.5, 97.5])
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


def resampled(results: Sequence[Rows], stream: int = 0) -> NDArray[np.float64]:
    """Figures of models that were asked the same questions, over questions drawn with replacement: [RESAMPLES, models].

    A draw holds the same questions for all models, so that the difference of two columns is that of a pair. The draws
    are the same at every call. From 10,000 questions on the figures are normal, with the covariance of what each
    question adds to them (``Rows.influence``), to which the bootstrap's converge.

    Args:
        results: Those of each model, [N] of at least two questions, in the same order.
        stream: Models of other questions get another one, whose draws have nothing in common with these.
    """
    questions = len(results[0].tops)
    if questions >= _MANY:
        influences = np.stack([result.influence() for result in results])
        figures = np.array([result.figure for result in results])
        generator = np.random.default_rng(stream)
        return generator.multivariate_normal(figures, influences @ influences.T, RESAMPLES, method="eigh")
    together = type(results[0]).drawn_together
    return np.concatenate([together(results, counts) for counts in _draws(questions, stream)])


def is_right_or_wrong(rows: Rows) -> bool:
    """Whether the figure is the share of right answers, each of which counts the same."""
    plain = type(rows) is Rows and not rows.exponential
    return plain and bool((rows.bottoms == 1).all() and np.isin(rows.tops, (0, 1)).all())


def _comparable(own: Rows, dense: Rows) -> bool:
    return len(own.questions) >= LEAST and own.asked == dense.asked


def _draws(questions: int, stream: int) -> Iterator[NDArray[np.float64]]:
    """How often each question is drawn, with replacement, [draws, N] at a time."""
    if (at_once := max(1, _AT_ONCE // questions)) >= RESAMPLES:
        yield _all_draws(questions, stream)
        return
    generator = np.random.default_rng(stream)
    for start in range(0, RESAMPLES, at_once):
        yield _drawn(generator, min(at_once, RESAMPLES - start), questions)


@lru_cache(maxsize=4)
def _all_draws(questions: int, stream: int) -> NDArray[np.float64]:
    """All draws at once: every pair of models, of every metric, has the same."""
    return _drawn(np.random.default_rng(stream), RESAMPLES, questions)


def _drawn(generator: np.random.Generator, draws: int, questions: int) -> NDArray[np.float64]:
    drawn = generator.integers(questions, size=(draws, questions))
    places = drawn + questions * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
