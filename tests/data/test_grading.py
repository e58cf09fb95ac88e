import math

import pytest

from slimexp.data import grading
from slimexp.data.base import Example


def test_text() -> None:
    examples = [Example("", "one two"), Example("", "three")]
    assert grading.grade_text(["one tvo", "three"], examples) == pytest.approx(
        {"cer": 1 / 12, "wer": 1 / 3, "exact_match": 1 / 2}
    )


def test_likelihood_counts_bytes_and_not_characters() -> None:
    examples = [Example("\u00e9a"), Example("b")]  # 3 + 1 bytes
    grades = grading.grade_likelihood([(2 * math.log(2), 2, 1), (2 * math.log(2), 2, 2)], examples)
    assert grades == pytest.approx({"bits_per_byte": 1.0, "perplexity": 2.0, "token_accuracy": 0.75})


def test_likelihood_sums_long_texts_exactly() -> None:
    examples = [Example("a")] * 10_000
    grades = grading.grade_likelihood([(0.1, 1, 0)] * 10_000, examples)
    assert grades["bits_per_byte"] == pytest.approx(0.1 / math.log(2), rel=1e-12)


def test_likelihood_of_a_broken_model_is_finite_where_it_can_be() -> None:
    assert math.isfinite(grading.grade_likelihood([(1e6, 1, 0)], [Example("a")])["perplexity"])


def test_label() -> None:
    examples = [Example("", label=label) for label in (0, 0, 1, 2)]
    grades = grading.grade_label([0, 1, 1, 2], examples, classes=3)
    assert grades == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 2 / 3 + 1) / 3})


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
