from random import Random

import pytest

from slimexp.data.typo import NEIGHBOURS, corrupt

pytestmark = pytest.mark.fast
TEXT = "Return the number of items that are still waiting in the queue."


def test_rate_zero_leaves_text_alone() -> None:
    assert corrupt(TEXT, 0.0, Random(0)) == TEXT


def test_noise_is_that_of_its_generator() -> None:
    assert corrupt(TEXT, 0.2, Random(7)) == corrupt(TEXT, 0.2, Random(7)) != corrupt(TEXT, 0.2, Random(8))


@pytest.mark.parametrize("rate", [0.02, 0.08, 0.3])
def test_share_of_untouched_sentences_follows_the_rate(rate: float) -> None:
    """A letter is left alone with probability 1 - rate: exact for text in which every error shows."""
    word = "query"
    untouched = sum(corrupt(word, rate, Random(seed)) == word for seed in range(4000)) / 4000
    assert untouched == pytest.approx((1 - rate) ** len(word), abs=0.03)


def test_every_kind_of_error_occurs() -> None:
    seen = {corrupt("ab", 0.5, Random(seed)) for seed in range(3000)}
    assert {"sb", "b", "aab", "ba", "Ab"} <= seen  # neighbour, dropped, doubled, swapped, case
    assert any(
        len(text) == 3 and text[0] == "a" and text[2] == "b" and text[1] not in "ab" for text in seen
    )  # inserted


@pytest.mark.parametrize("text", ["", " ", "a", "...", "\u00e9\u00e8"])
def test_any_text_is_taken(text: str) -> None:
    for seed in range(50):
        assert isinstance(corrupt(text, 0.9, Random(seed)), str)


def test_neighbours_touch_both_ways() -> None:
    assert set(NEIGHBOURS["s"]) == set("wedazx")
    assert all(key in NEIGHBOURS[near] for key, nears in NEIGHBOURS.items() if not key.isupper() for near in nears)
