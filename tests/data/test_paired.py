"""Differences on the same questions: intervals against closed forms, tests and each other."""

import math

import numpy as np
import pytest

from slimexp.data.paired import differences, interval, tango
from slimexp.data.rows import Rows

pytestmark = pytest.mark.fast


def rows(tops: object, bottoms: object = 1.0, *, exponential: bool = False) -> Rows:
    top = np.asarray(tops, dtype=float)
    below = np.broadcast_to(np.asarray(bottoms, dtype=float), top.shape).copy()
    return Rows(np.arange(len(top), dtype=np.uint64), top, below, exponential)


@pytest.mark.parametrize("questions", [10, 40, 200])
def test_right_and_wrong_are_told_apart_where_mcnemar_tells_them(questions: int) -> None:
    decided = set()
    for gained in range(0, questions // 2):
        for lost in range(0, questions // 2, 3):
            low, high = tango(gained, lost, questions)
            assert -1 <= low <= (gained - lost) / questions <= high <= 1
            statistic = (gained - lost) ** 2 / (gained + lost) if gained + lost else 0.0
            assert (low > 0 or high < 0) == (statistic > 1.959964**2)
            decided.add(low > 0 or high < 0)
    assert decided == {True, False}


def test_right_and_wrong_answers_that_are_all_alike_leave_a_doubt() -> None:
    z = 1.959964**2
    for questions in (10, 200):
        low, high = tango(0, 0, questions)
        assert (low, high) == pytest.approx((-z / (questions + z), z / (questions + z)), rel=1e-6)
    low, high = tango(5, 0, 5)
    assert high == 1 and 0 < low < 1
    assert tango(0, 5, 5) == pytest.approx((-high, -low))


def test_the_interval_of_right_and_wrong_covers_what_it_says() -> None:
    generator = np.random.default_rng(1)
    gained, lost, questions = 0.15, 0.05, 60
    draws = generator.multinomial(questions, [gained, lost, 1 - gained - lost], size=400)
    ends = [tango(int(plus), int(minus), questions) for plus, minus, _ in draws]
    covered = np.mean([low <= gained - lost <= high for low, high in ends])
    assert 0.92 < covered < 0.98


def test_other_figures_are_bootstrapped_in_pairs() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 80, size=400)
    hard = generator.gamma(2.0, 1.0, size=400)
    own, dense = rows(hard * lengths + generator.normal(1, 3, 400), lengths), rows(hard * lengths, lengths)
    low, high = interval(own, dense)
    assert low < own.figure - dense.figure < high and interval(own, dense) == (low, high)
    residuals = (own.tops - dense.tops) - (own.figure - dense.figure) * lengths
    error = math.sqrt((residuals**2).sum()) / lengths.sum()
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    apart = math.hypot(*(np.std(r.tops - r.figure * lengths) * 20 / lengths.sum() for r in (own, dense)))
    assert high - low < apart  # two error bars say a fraction of what one comparison says


def test_many_questions_have_the_interval_that_the_bootstrap_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    nats = generator.gamma(2.0, 1.0, size=3000)
    for exponential in (False, True):
        pair = rows(nats + generator.normal(0.1, 1, 3000), exponential=exponential), rows(nats, exponential=exponential)
        drawn = interval(*pair)
        with monkeypatch.context() as patch:
            patch.setattr("slimexp.data.paired._MANY", 3000)
            linear = interval(*pair)
        assert linear != drawn and linear == pytest.approx(drawn, rel=0.1, abs=0.002)


def test_only_the_same_questions_are_compared() -> None:
    dense = {"acc": rows([1, 0, 1]), "perplexity": rows([1.0, 2.0, 3.0], [2, 2, 2], exponential=True)}
    own = {
        "acc": rows([1, 1, 0]),
        "perplexity": rows([1.0, 2.0, 3.0], [2, 2, 3], exponential=True),  # of other tokens
        "f1": rows([1, 1, 1]),
    }
    figures = differences(own, dense)
    assert set(figures) == {"acc_difference", "acc_difference_low", "acc_difference_high"}
    assert figures["acc_difference"] == 0 and figures["acc_difference_low"] < 0 < figures["acc_difference_high"]
    others = Rows(np.array([0, 1, 7], dtype=np.uint64), dense["acc"].tops, dense["acc"].bottoms)
    assert differences({"acc": others}, dense) == {} == differences({"acc": rows([1])}, {"acc": rows([0])})
