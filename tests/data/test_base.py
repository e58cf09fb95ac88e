"""What every corpus of conf/data keeps to. A new YAML file is tested the moment it exists."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR, compose
from slimexp.data.base import HELD_OUT, Corpus, Example
from slimexp.data.grading import HEADLINES

FILES = sorted((CONF_DIR / "data").glob("*.yaml"))
OPEN = {path.stem for path in FILES if yaml.safe_load(path.read_text()).get("path") == "???"}  # need a path and a task
CASES = [(path.stem, None) for path in FILES if path.stem not in OPEN] + [
    (name, task) for name in sorted(OPEN) for task in HEADLINES
]
Build = Callable[..., Corpus]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(filter(None, case)))
def build_corpus(
    request: pytest.FixtureRequest, library: Path, tmp_path: Path, rows: list[dict[str, Any]], write_jsonl: Any
) -> Build:
    """Builds the corpus of one YAML file on the tiny library or table, for a given seed of the run."""
    name, task = request.param
    overrides = [f"data={name}"]
    if task:
        write_jsonl(tmp_path / "table" / "rows.jsonl", rows)
        overrides += [f"data.path={tmp_path / 'table'}", f"data.task={task}"]
    return lambda seed=0: build(compose([*overrides, f"seed={seed}"]).data)


def gold(corpus: Corpus, examples: list[Example]) -> list[Any]:
    if corpus.task == "seq2seq":
        return [example.target for example in examples]
    if corpus.task == "classification":
        return [example.label for example in examples]
    return [(0.0, len(example.source), len(example.source)) for example in examples]


def test_splits(build_corpus: Build) -> None:
    corpus = build_corpus()
    texts = {split: {example.target or example.source for example in rows} for split, rows in corpus.splits.items()}
    assert set(texts) == {"train", *HELD_OUT}
    assert all(texts.values())
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def test_held_out_rows_outlive_the_seed(build_corpus: Build) -> None:
    first, second = build_corpus(0), build_corpus(1)
    for split in HELD_OUT:
        assert list(first.splits[split]) == list(second.splits[split])


def test_examples_fit_the_task(build_corpus: Build) -> None:
    corpus = build_corpus()
    for example in [corpus.training_example(0, 0), *(corpus.splits[split][0] for split in HELD_OUT)]:
        assert (example.target is not None) == (corpus.task == "seq2seq")
        assert (example.label is not None) == (corpus.task == "classification")
    assert bool(corpus.labels) == (corpus.task == "classification")
    assert all(isinstance(text, str) for text in corpus.texts())


def test_training_examples_are_pure(build_corpus: Build) -> None:
    first, second = build_corpus(), build_corpus()
    assert [first.training_example(i, 3) for i in (2, 0, 1)] == [second.training_example(i, 3) for i in (2, 0, 1)]


def test_metric_is_perfect_on_gold(build_corpus: Build) -> None:
    corpus = build_corpus()
    examples = list(corpus.splits["test"])
    grades = corpus.grade(gold(corpus, examples), examples)
    assert (corpus.headline, corpus.direction) == HEADLINES[corpus.task]
    assert grades[corpus.headline] == (0.0 if corpus.direction == "min" else 1.0)
    assert all(math.isfinite(value) for value in grades.values())


def test_trivial_is_worse_than_gold(build_corpus: Build) -> None:
    corpus = build_corpus()
    trivial = corpus.trivial(corpus.splits["test"])
    assert trivial > 0 if corpus.direction == "min" else trivial < 1
