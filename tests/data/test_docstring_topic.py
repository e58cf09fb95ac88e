import sys
from collections import Counter

import pytest

from slimexp.data.base import Example
from slimexp.data.docstring_topic import TOPICS, DocstringTopic, topic_split
from slimexp.data.library import TRAIN_ONLY


def test_real_library() -> None:
    """Every topic has sentences in every split, and words tell topics apart across modules."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    corpus = DocstringTopic(split_seed=0, word_dropout=0.0, seed=0)
    for rows in corpus.splits.values():
        counts = Counter(row.label for row in rows)
        assert min(counts[label] for label in range(len(TOPICS))) >= 20
    words, classifier = CountVectorizer(binary=True), MultinomialNB(alpha=0.3)
    train, test = corpus.splits["train"], corpus.splits["test"]
    classifier.fit(words.fit_transform([row.source for row in train]), [row.label for row in train])
    predicted = classifier.predict(words.transform([row.source for row in test])).tolist()
    assert corpus.grade(predicted, test)["macro_f1"] > corpus.trivial(test) + 0.2


@pytest.mark.fast
def test_topics_share_no_module_and_name_only_lasting_ones() -> None:
    modules = [module for topic in TOPICS.values() for module in topic]
    assert len(modules) == len(set(modules))
    assert not set(modules) & TRAIN_ONLY
    assert set(modules) <= sys.stdlib_module_names


@pytest.mark.fast
@pytest.mark.parametrize("split_seed", [0, 1])
@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_is_trained_and_tested(topic: str, split_seed: int) -> None:
    places = [topic_split(module, split_seed=split_seed) for module in TOPICS[topic]]
    assert places[0] == (topic, "train")
    counts = Counter(split for _, split in filter(None, places))
    assert counts["train"] > counts["test"] == counts["validation"] >= 1


@pytest.mark.fast
def test_other_modules_have_no_topic() -> None:
    assert topic_split("tkinter", split_seed=0) is None


@pytest.mark.fast
def test_word_dropout_is_fresh_in_every_epoch_and_leaves_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Example(" ".join(f"w{i}" for i in range(1000)), label=2), Example("alone", label=0)]
    monkeypatch.setattr(DocstringTopic, "load", lambda self: dict.fromkeys(("train", "validation", "test"), rows))
    corpus = DocstringTopic(split_seed=0, word_dropout=0.4, seed=1)
    first, second = (corpus.training_example(0, epoch).source.split() for epoch in (0, 1))
    assert first != second and abs(len(first) - 600) < 60
    assert sorted(first, key=rows[0].source.split().index) == first
    assert corpus.training_example(0, 0) == corpus.training_example(0, 0) and corpus.training_example(0, 0).label == 2
    assert {corpus.training_example(1, epoch).source for epoch in range(9)} == {"alone"}
    whole = DocstringTopic(split_seed=0, word_dropout=0.0, seed=1)
    assert whole.training_example(0, 5) == rows[0]


@pytest.mark.fast
@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_refuses_a_share_outside_its_range(share: float) -> None:
    with pytest.raises(ValueError, match=r"word_dropout must be in \[0, 1\), got"):
        DocstringTopic(split_seed=0, word_dropout=share, seed=0)
