"""Each filter drops what it is for, and says so."""

from collections.abc import Callable
from typing import Any

import pytest

from slimexp.completion.filters import Filters, compression
from slimexp.completion.store import Text

Make = Callable[..., Any]
ALL: dict[str, Any] = {"shortest": 1, "finished": False, "compression": None, "worst_cer": None, "similarity": None}


def texts(corpus: Any, *written: str, finished: bool = True) -> list[Text]:
    """A text for each of the first training rows."""
    rows = [corpus.training_example(row, 0).source for row in range(len(written))]
    return [Text(row, 0, rows[row], text, finished) for row, text in enumerate(written)]


def kept(corpus: Any, made: list[Text], **values: Any) -> tuple[list[str], dict[str, int]]:
    left, dropped = Filters(**ALL | values).kept(made, corpus)
    return [text.text for text in left], {name: count for name, count in dropped.items() if count}


def test_empty_and_short_ones(corpus: Make) -> None:
    data = corpus("seq2seq")
    assert kept(data, texts(data, "", " \n", "ab", "abc")) == (["ab", "abc"], {"empty or short": 2})
    assert kept(data, texts(data, "ab", "abc"), shortest=3) == (["abc"], {"empty or short": 1})


def test_targets_that_were_cut_off(corpus: Make) -> None:
    data, causal = corpus("seq2seq"), corpus("causal_lm")
    made = texts(data, "whole") + texts(data, "cut", finished=False)
    assert kept(data, made) == (["whole", "cut"], {})
    assert kept(data, made, finished=True) == (["whole"], {"cut off": 1})
    assert kept(causal, texts(causal, "cut", finished=False), finished=True) == (["cut"], {})


def test_loops(corpus: Make) -> None:
    data = corpus("causal_lm")
    plain = "Texts in loops say the same again and again, and a compressor makes next to nothing of them."
    assert compression(plain) < 2 < 5 < compression("return x\n" * 20)
    assert kept(data, texts(data, plain, "return x\n" * 20), compression=5.0) == ([plain], {"in loops": 1})


def test_those_far_from_the_gold_target(corpus: Make) -> None:
    data = corpus("seq2seq")
    gold = [data.training_example(row, 0).target for row in range(3)]
    made = texts(data, gold[0], gold[1] + "?", "quite another text, in all of its characters")
    assert kept(data, made, worst_cer=0.0) == (gold[:1], {"unlike the gold target": 2})
    assert kept(data, made, worst_cer=0.5) == ([gold[0], gold[1] + "?"], {"unlike the gold target": 1})


def test_near_duplicates(corpus: Make) -> None:
    data = corpus("causal_lm")
    made = [Text(row, 0, "", text, True) for row, text in enumerate(["one and two", "three", "one and two"])]
    assert kept(data, made, similarity=0.9) == (["one and two", "three"], {"near-duplicates": 1})


@pytest.mark.fast
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shortest": 0}, "shortest must be >= 1 character"),
        ({"compression": 1.0}, r"compression must be > 1, or null to keep all, got 1\.0"),
        ({"worst_cer": -0.1}, "worst_cer must be >= 0"),
        ({"similarity": 0.0}, r"similarity must be in \(0, 1\]"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filters(**ALL | values)
