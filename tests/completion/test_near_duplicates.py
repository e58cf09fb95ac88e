"""Near-duplicates are those that a comparison of all pairs finds."""

from random import Random

import pytest

from slimexp.completion.near_duplicates import SHINGLE, first_ones

pytestmark = pytest.mark.fast


def runs(text: str) -> set[str]:
    plain = " ".join(text.split())
    return {plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1))}


def all_pairs(texts: list[str], similarity: float) -> list[int]:
    kept: list[int] = []
    for index, text in enumerate(texts):
        of = [runs(texts[other]) for other in kept]
        if not any(len(runs(text) & other) / len(runs(text) | other) >= similarity for other in of):
            kept.append(index)
    return kept


@pytest.mark.parametrize("similarity", [0.8, 0.9, 1.0])
def test_the_first_of_those_that_are_alike_stays(similarity: float) -> None:
    random = Random(0)
    texts = []
    for _ in range(20):
        text = "".join(random.choice("abcdefgh ") for _ in range(200))
        texts.append(text)
        for edits in (0, 1, 2, 5):
            letters = list(text)
            for place in random.sample(range(200), edits):
                letters[place] = "x"
            texts.append("".join(letters))
    expected = all_pairs(texts, similarity)
    assert first_ones(texts, similarity) == expected and 20 <= len(expected) < len(texts)


def test_short_texts_and_blanks() -> None:
    assert first_ones(["", "a", "a", "b", " a \n", ""], 1.0) == [0, 1, 3]
    assert first_ones([], 0.8) == []
