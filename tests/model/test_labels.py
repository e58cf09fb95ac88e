"""Classes of a model and of a corpus, by name."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from slimexp.cut.keep import Keep
from slimexp.cut.source import CutOut
from slimexp.model.labels import by_position, in_model_order, options
from slimexp.model.loading import Pretrained
from slimexp.pipeline.reference import number_classes

TRAINED = ["BertForSequenceClassification"]
TEXTS = ["one", "three and four", "five, six, seven", "eight"]


def config(*names: str, architectures: Any = TRAINED) -> BertConfig:
    return BertConfig(id2label=dict(enumerate(names)), architectures=architectures)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("model_names", "corpus_names", "expected"),
    [
        (("POSITIVE", "NEGATIVE"), ("negative", "positive"), ("positive", "negative")),
        (("neutral", "Very  Good", "bad"), ("bad", "neutral", "very good"), ("neutral", "very good", "bad")),
        (("a", "A"), ("A", "a"), ("a", "A")),  # differ by case alone: the spelling tells
        (("cafe\u0301", "bar"), ("bar", "caf\u00e9"), ("caf\u00e9", "bar")),
        (("1", "0"), ("0", "1"), ("1", "0")),  # names, though they look like numbers
        (("LABEL_0", "LABEL_1"), ("negative", "positive"), ("negative", "positive")),
        (("0", "1"), ("negative", "positive"), ("negative", "positive")),
        (("NEGATIVE", "POSITIVE"), ("0", "1"), ("0", "1")),
        (("LABEL_0", "LABEL_1"), ("1", "2"), ("1", "2")),
    ],
)
def test_matched_by_name_or_by_position(
    model_names: tuple[str, ...], corpus_names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert in_model_order(config(*model_names), corpus_names) == expected
    assert options(config(*model_names), corpus_names) == {}  # the model keeps its own names


@pytest.mark.fast
@pytest.mark.parametrize(
    ("model_names", "corpus_names"),
    [
        (("no", "yes"), ("bad", "good")),
        (("no", "yes"), ("no", "perhaps", "yes")),
        (("no", "perhaps", "yes"), ("no", "yes")),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("no", "yes")),
        (("LABEL_1", "LABEL_0"), ("no", "yes")),  # numbers that contradict the positions
        (("a", "A"), ("a", "b")),
    ],
)
def test_other_classes_are_refused_by_both_lists(model_names: tuple[str, ...], corpus_names: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"\({', '.join(model_names)}\), the corpus {len(corpus_names)} \({', '.join(corpus_names)}\)"
    ):
        in_model_order(config(*model_names), corpus_names)


@pytest.mark.fast
def test_a_model_without_a_trained_head_takes_the_names_of_the_corpus() -> None:
    fresh = config("LABEL_0", "LABEL_1", architectures=["BertForMaskedLM"])
    assert options(fresh, ("no", "yes"))["id2label"] == {0: "no", 1: "yes"}
    assert not by_position(fresh, ("no", "yes"))
    assert by_position(config("LABEL_0", "LABEL_1"), ("no", "yes"))


@pytest.mark.fast
def test_names_are_taken_by_id_whatever_their_order_in_the_file() -> None:
    shuffled = BertConfig(id2label={1: "yes", 0: "no"}, architectures=TRAINED)
    assert in_model_order(shuffled, ("no", "yes")) == ("no", "yes")


@pytest.fixture
def positive_first(tiny_folder: Callable[..., Path]) -> Path:
    """A classifier whose outputs are YES, NO, and whose answers differ from row to row."""
    folder = tiny_folder("classification")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        model.classifier.weight.normal_(std=2)
        model.classifier.bias.copy_(torch.tensor([0.5, -0.25]))
    model.config.id2label, model.config.label2id = {0: "YES", 1: "NO"}, {"YES": 0, "NO": 1}
    model.save_pretrained(folder)
    return folder


def answers(folder: Path) -> list[str]:
    """What plain transformers answers."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [model(**tokenizer(text, return_tensors="pt")).logits.argmax(-1).item() for text in TEXTS]
    return [model.config.id2label[i].lower() for i in ids]


def test_the_corpus_is_numbered_as_the_model_is(positive_first: Path, corpus: Callable[[str], Any]) -> None:
    rows = corpus("classification")
    named = [rows.labels[row.label] for row in rows.splits["train"]]
    source = Pretrained(path=str(positive_first), max_length=32)
    number_classes(rows, source.validate("classification", rows.labels))
    assert rows.labels == ("yes", "no")
    assert [rows.labels[row.label] for row in rows.splits["train"]] == named
    family = source.load(task="classification", texts=list, labels=rows.labels)
    found = family.predict([(text, None, None) for text in TEXTS], batch_size=2)
    assert [rows.labels[i] for i in found] == answers(positive_first)
    assert family.model.config.id2label == {0: "YES", 1: "NO"}  # the model's own


def test_a_teacher_is_laid_out_in_the_students_order(positive_first: Path) -> None:
    source = Pretrained(path=str(positive_first), max_length=32)
    family = source.load(task="classification", texts=list, labels=("no", "yes"))
    found = family.predict([(text, None, None) for text in TEXTS], batch_size=2)
    assert [("no", "yes")[i] for i in found] == answers(positive_first)
    assert family.model.config.id2label == {0: "NO", 1: "YES"}
    assert family.model.config.label2id == {"NO": 0, "YES": 1}


@torch.no_grad()
def test_a_cut_teacher_is_laid_out_too(positive_first: Path) -> None:
    cut = Keep(
        encoder_layers=[0],
        decoder_layers=None,
        ffn=None,
        heads=None,
        attention_rank=None,
        ffn_rank=None,
        hidden=None,
        experts=None,
        calibration_batches=1,
    )
    source = CutOut(source=Pretrained(path=str(positive_first), max_length=32), cut=cut)
    logits = []
    for labels in (("yes", "no"), ("no", "yes")):
        family = source.load(task="classification", texts=list, labels=labels)
        logits.append(family.forward(family.encode([(text, None, None) for text in TEXTS]))[0])
    torch.testing.assert_close(logits[0], logits[1].flip(1), rtol=0, atol=0)


def test_classes_taken_by_position_are_said(corpus: Callable[[str], Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        number_classes(corpus("classification"), config("LABEL_0", "LABEL_1"))
    assert "taken by position: LABEL_0 = no, LABEL_1 = yes" in caplog.text


def test_a_pipeline_grades_by_name(overrides: Callable[..., list[str]], positive_first: Path) -> None:
    """Accuracy is that of plain transformers by the names of its answers, and the artifact keeps the model's names."""
    from slimexp.config.composition import compose
    from slimexp.pipeline.pipeline import Pipeline

    lines = overrides("prune", "pipeline.prune.steps=0", task="classification")
    pipeline = Pipeline(compose([*lines, f"model.path={positive_first}"]), overrides=[])
    assert pipeline.corpus.labels == ("yes", "no")
    metrics = pipeline.run()
    folder = pipeline.stages[-1].artifact
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "YES", 1: "NO"}
    right = 0
    for row in (rows := pipeline.corpus.splits["test"]):
        answer = model(**tokenizer(row.source, return_tensors="pt", truncation=True, max_length=16)).logits.argmax(-1)
        right += model.config.id2label[answer.item()].lower() == ("no", "yes")[int(row.source.split()[-1]) % 2]
    assert metrics["accuracy"] == pytest.approx(right / len(rows))
