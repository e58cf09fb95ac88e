import sys
from collections import Counter

import pytest

from slimexp.data.docstring_topic import TOPICS, DocstringTopic, topic_split
from slimexp.data.library import TRAIN_ONLY


def test_real_library() -> None:
    """Every topic has sentences in every split, and words tell topics apart across modules."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    corpus = DocstringTopic(split_seed=0)
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
