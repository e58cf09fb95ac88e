import math
import random

import numpy as np
import pytest

from slimexp.data import grading
from slimexp.data.base import Example


def values(grades: dict[str, float]) -> dict[str, float]:
    """Without their errors."""
    return {name: value for name, value in grades.items() if not name.endswith("_stderr")}


def test_text() -> None:
    examples = [Example("", "one two"), Example("", "three")]
    assert values(grading.grade_text(["one tvo", "three"], examples)) == pytest.approx(
        {"cer": 1 / 12, "wer": 1 / 3, "exact_match": 1 / 2}
    )


def test_text_without_letters_counts_what_was_written() -> None:
    grades = grading.grade_text(["ab", "x y"], [Example("", ""), Example("", "x y z")])
    assert grades["cer"] == pytest.approx((2 + 2) / 5) and grades["wer"] == pytest.approx((1 + 1) / 3)
    assert grading.grade_text(["ab"], [Example("", "")])["cer"] == math.inf


def test_errors_are_the_spread_over_other_rows() -> None:
    """Against the standard deviation over many fresh draws of rows from one population."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(5, 60, 4000)
    edits = chance.binomial(lengths, chance.choice([0.01, 0.2], 4000))
    drawn = [chance.integers(0, 4000, 100) for _ in range(2000)]
    true = np.std([edits[rows].sum() / lengths[rows].sum() for rows in drawn])
    reported = np.mean([grading._error(edits[rows], lengths[rows]) for rows in drawn])
    assert reported == pytest.approx(true, rel=0.05)

    truth = chance.integers(0, 4, 4000)
    predicted = np.where(chance.random(4000) < 0.7, truth, chance.integers(0, 4, 4000))
    drawn = drawn[:200]

    def f1(rows: np.ndarray) -> float:
        examples = [Example("", label=int(label)) for label in truth[rows]]
        return grading.grade_label(predicted[rows].tolist(), examples, classes=4)["macro_f1"]

    reported = np.mean([grading._macro_f1_error(predicted[rows], truth[rows], 4) for rows in drawn[:50]])
    assert reported == pytest.approx(np.std([f1(rows) for rows in drawn]), rel=0.15)


def test_a_share_of_rows_has_the_binomial_error() -> None:
    hits = [1] * 30 + [0] * 70
    assert grading._error(hits, [1] * 100) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_one_row_has_no_error() -> None:
    for grades in (
        grading.grade_text(["one"], [Example("", "two")]),
        grading.grade_likelihood([(1.0, 1, 0)], [Example("a")]),
        grading.grade_label([0], [Example("", label=1)], classes=2),
    ):
        assert not [name for name in grades if name.endswith("_stderr")]


def test_likelihood_counts_bytes_and_not_characters() -> None:
    examples = [Example("\u00e9a"), Example("b")]  # 3 + 1 bytes
    grades = grading.grade_likelihood([(2 * math.log(2), 2, 1), (2 * math.log(2), 2, 2)], examples)
    assert values(grades) == pytest.approx({"bits_per_byte": 1.0, "perplexity": 2.0, "token_accuracy": 0.75})


def test_likelihood_sums_long_texts_exactly() -> None:
    examples = [Example("a")] * 10_000
    grades = grading.grade_likelihood([(0.1, 1, 0)] * 10_000, examples)
    assert grades["bits_per_byte"] == pytest.approx(0.1 / math.log(2), rel=1e-12)


def test_likelihood_of_a_broken_model_is_finite_where_it_can_be() -> None:
    assert math.isfinite(grading.grade_likelihood([(1e6, 1, 0)], [Example("a")])["perplexity"])


def test_label() -> None:
    examples = [Example("", label=label) for label in (0, 0, 1, 2)]
    grades = grading.grade_label([0, 1, 1, 2], examples, classes=3)
    assert values(grades) == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 2 / 3 + 1) / 3})


@pytest.mark.fast
def test_commonest_label_breaks_ties_by_order() -> None:
    assert grading.commonest_label([Example("", label=label) for label in (2, 1, 1, 2, 0)]) == 1


@pytest.mark.fast
def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="one prediction per example, got 1 for 2"):
        grading._check(["a"], [Example("")] * 2)
    with pytest.raises(ValueError, match="nothing to grade"):
        grading._check([], [])


def test_no_predicted_token() -> None:
    with pytest.raises(ValueError, match="no token was predicted"):
        grading.grade_likelihood([(0.0, 0, 0)], [Example("a")])


def test_guessing_bytes_by_frequency() -> None:
    half = [Example("ab" * 5000)]
    assert grading.byte_bits(half, [Example("abba")]) == pytest.approx(1.0, abs=0.05)
    assert grading.byte_bits([], [Example("anything")]) == pytest.approx(8.0)
    assert grading.byte_bits(half, [Example("zz")]) > 8


def test_drawing_classes_by_frequency_is_the_best_guess_for_macro_f1() -> None:
    rows = [Example("", label=label) for label in [0] * 6 + [1] * 3 + [2]]
    assert grading.guessed_macro_f1(rows, rows) == pytest.approx(1 / 3)
    commonest = grading.grade_label([0] * len(rows), rows, classes=3)["macro_f1"]
    assert commonest < grading.guessed_macro_f1(rows, rows)
    assert grading.guessed_macro_f1(rows[:6], rows[6:]) == 0
    drawn = [0] * 6 + [1] * 3 + [2]
    rng = random.Random(0)
    many = [Example("", label=label) for label in drawn * 500]
    found = grading.grade_label([rng.choice(drawn) for _ in many], many, classes=3)["macro_f1"]
    assert found == pytest.approx(1 / 3, abs=0.02)
