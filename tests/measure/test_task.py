"""Quality on held-out text."""

from collections.abc import Callable
from typing import Any

import pytest

from slimexp.data import grading
from slimexp.data.base import Corpus, Example
from slimexp.measure.base import Subject, trivial
from slimexp.measure.task import Task


class _Oracle:
    """A family that knows the answers, and remembers the sources that it predicted."""

    task = "causal_lm"  # whose rows are never cut
    max_length = 64

    def __init__(self, subject: Subject) -> None:
        self.model = subject.family.model
        self.sources: list[str] = []

    def predict(self, rows: Any, *, batch_size: int) -> list[Any]:
        assert not self.model.training
        self.sources = [row[0] for row in rows]
        return [row[1] for row in rows]


def _task(**changes: Any) -> Task:
    return Task(**{"split": "test", "limit": None, "batch_size": 4, "seed": 0, **changes})


def test_right_answers_score_full_marks(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    oracle = _Oracle(subjects["seq2seq"])
    subject = Subject(family=oracle, folder=subjects["seq2seq"].folder)  # type: ignore[arg-type]
    assert _task().measure(subject, subject, corpora["seq2seq"]) == {"exact_match": 1.0, "task_examples": 12.0}
    some = _task(limit=3).measure(subject, subject, corpora["seq2seq"])
    assert (some["task_examples"], some["task_split_rows"]) == (3.0, 12.0)
    rows = [example.source for example in corpora["seq2seq"].splits["test"]]
    places = [rows.index(source) for source in oracle.sources]
    assert [place // 4 for place in places] == [0, 1, 2]


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_is_deterministic(task: str, subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    subject = subjects[task]
    first, second = (_task(limit=5).measure(subject, subject, corpora[task]) for _ in range(2))
    assert first == second and first["task_examples"] == 5.0


@pytest.mark.fast
def test_the_trivial_guess_is_of_the_same_rows(corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpora["seq2seq"]
    monkeypatch.setattr(corpus, "trivial", list)
    task = _task(limit=3, split="validation")
    assert trivial([task], corpus) == task.graded(corpus) and len(task.graded(corpus)) == 3
    assert trivial([], corpus) == corpus.splits["test"]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "on_cpu", "rows"), [("auto", True, 6), ("auto", False, 12), (None, True, 12), (5, True, 5)]
)
def test_on_a_cpu_auto_grades_as_many_rows_as_hold_the_budget(
    given: Any, on_cpu: bool, rows: int, corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, task = corpora["seq2seq"], _task(limit=given)
    characters = sum(len(row.source) + len(row.target or "") for row in corpus.splits["test"])
    monkeypatch.setattr("slimexp.measure.task.ON_CPU", characters // 2)
    chosen = {"limit": 6 if on_cpu else None} if given == "auto" else {}
    assert task.adapt(corpus, on_cpu=on_cpu) == chosen and len(task.graded(corpus)) == rows


@pytest.mark.fast
@pytest.mark.parametrize("bad", [{"split": "train"}, {"limit": 0}, {"limit": "all"}, {"batch_size": 0}])
def test_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        _task(**bad)


@pytest.mark.parametrize("task", ["seq2seq", "classification", "causal_lm"])
def test_rows_that_are_cut_are_counted(task: str, subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    family = subjects[task].family
    longest = family.max_length
    assert "task_cut_rows" not in _task().measure(subjects[task], subjects[task], corpora[task])
    try:
        family.max_length = 4
        figures = _task().measure(subjects[task], subjects[task], corpora[task])
    finally:
        family.max_length = longest
    assert figures.get("task_cut_rows") == (None if task == "causal_lm" else figures["task_examples"])


@pytest.mark.parametrize(
    ("task", "graded"),
    [
        ("seq2seq", lambda: grading.grade_text(["a", "b"], [Example("a", "a"), Example("b", "c")])),
        ("causal_lm", lambda: grading.grade_likelihood([(1.0, 2, 1), (2.0, 2, 0)], [Example("ab"), Example("cd")])),
        (
            "classification",
            lambda: grading.grade_label([0, 1], [Example("a", label=0), Example("b", label=0)], classes=2),
        ),
    ],
)
def test_what_it_says_that_it_gives_is_what_corpora_grade(task: str, graded: Callable[[], dict[str, float]]) -> None:
    assert set(_task().figure_names(task)) == {name for name in graded() if not name.endswith("_stderr")}
