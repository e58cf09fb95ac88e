"""Simple models: their probabilities are such, and they learn."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks import baselines
from slimexp.data.base import Corpus, Example

TRAIN = [b"def add(a, b):\n    return a + b\n", b"def sub(a, b):\n    return a - b\n", b"import os\n", b"x = 1\n"] * 3


@pytest.mark.fast
@pytest.mark.parametrize("smoothing", ["witten-bell", "kneser-ney"])
@pytest.mark.parametrize("context", [b"", b"d", b"def ", b"retu", b"\xff\xfe"])
def test_ngram_probabilities_sum_to_one(smoothing: baselines.Smoothing, context: bytes) -> None:
    words = [bytes([byte]) for byte in range(1, 256)]  # byte 0 pads, and is never predicted
    texts = [[context + word] for word in words]
    bits = baselines.ngram_bits(TRAIN, [[context], *texts] if context else texts, smoothing, orders=(4,))[4]
    before = bits.pop(0) * len(context) if context else 0.0
    total = sum(2 ** (before - each * (len(context) + 1)) for each in bits)
    assert 0.9 < total <= 1 + 1e-9  # the rest is byte 0's share of the uniform start


@pytest.mark.fast
def test_witten_bell_by_hand() -> None:
    bits = baselines.ngram_bits([b"ab", b"ab", b"ac"], [[b"a"], [b"ab"]], "witten-bell", orders=(2,))[2]
    alone = (2 + 3 / 256) / 9  # of b: 2 in 6 letters of 3 kinds
    after = (2 + 2 * alone) / 5  # of b after a: 2 in 3 letters of 2 kinds
    assert math.isclose(2 * bits[1] - bits[0], -math.log2(after))


@pytest.mark.fast
@pytest.mark.parametrize("smoothing", ["witten-bell", "kneser-ney"])
def test_ngrams_learn_from_their_context(smoothing: baselines.Smoothing) -> None:
    plausible, implausible = [b"def add(a, b):\n    return a + b\n"], [b"qqqq zzzz ~~~~ QQQQ"]
    bits = baselines.ngram_bits(TRAIN, [plausible, implausible], smoothing, orders=(1, 4))
    assert bits[4][0] < 1 < bits[1][0]
    assert bits[4][1] > 4


@pytest.mark.fast
def test_windows_start_every_passage_afresh_and_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(baselines.windows(TRAIN, 3)))
    assert len(whole) == sum(map(len, TRAIN))
    assert whole[:3].tolist() == [ord("d"), ord("d") << 8 | ord("e"), ord("d") << 16 | ord("e") << 8 | ord("f")]
    assert whole[len(TRAIN[0])] == ord("d")
    monkeypatch.setattr(baselines, "CHUNK", 40)
    chunks = list(baselines.windows(TRAIN, 3))
    assert len(chunks) > 1
    assert np.array_equal(np.concatenate(chunks), whole)


@pytest.mark.fast
def test_lzma_counts_only_what_the_held_out_text_adds() -> None:
    chance = np.random.default_rng(0)
    train = [chance.bytes(5000)]
    repeated, new = baselines.lzma_bits(train, [train, [chance.bytes(5000)]])
    assert repeated < 0.2
    assert 7.9 < new < 8.5


@pytest.mark.fast
def test_the_dictionary_corrects_one_edit_a_word_and_a_missing_space() -> None:
    dictionary = baselines.Dictionary(["Return the whole file.", "Close the file.", "The name of the file."] * 20)
    channel = baselines.Channel(edit=5.0, unseen=1e-4)
    assert dictionary.correct("Retrun teh file.", channel) == "Return the file."
    assert dictionary.correct('Close thefile, "nmae".', channel) == 'Close the file, "name".'
    assert dictionary.correct("Frobnicate it.", channel) == "Frobnicate it."
    assert dictionary.correct("Teh file.", baselines.Channel(edit=50.0, unseen=1e-4)) == "Teh file."


class Topics(Corpus):
    """Two classes told apart by one word."""

    task = "classification"
    labels = ("mail", "numbers")
    headline = "macro_f1"
    direction = "max"

    def load(self) -> Any:
        rows = [Example(f"{noun} {i}", label=label) for i in range(9) for label, noun in enumerate(("send", "round"))]
        return {"train": rows, "validation": rows[:6], "test": rows[6:]}

    def grade(self, predictions: Any, examples: Any) -> dict[str, float]:
        return baselines.grading.grade_label(predictions, examples, classes=2)

    def trivial(self, examples: Any) -> float:
        raise NotImplementedError


def test_bag_of_words_tells_topics_apart() -> None:
    corpus = Topics()
    commonest, *models = baselines.docstring_topic(corpus)
    assert commonest[2]["accuracy"] == 0.5
    assert [name.split(",")[0] for name, _, _ in models] == ["naive Bayes", "logistic regression"]
    assert all(test["macro_f1"] == 1 for _, _, test in models)
    lines = baselines.table(corpus, [commonest, *models]).splitlines()
    assert lines[0] == "| baseline | macro_f1 (validation) | macro_f1 (test) | accuracy (test) |"
    assert {line.count("|") for line in lines} == {5}
