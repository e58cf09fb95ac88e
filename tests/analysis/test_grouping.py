"""Grouping: only records of one corpus, headline and set of rows are compared."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from slimexp.analysis.grouping import environments_of, grouped, with_dense
from slimexp.analysis.section import Section, sections
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

SPELLING = {"_target_": "slimexp.data.spelling.Spelling", "rate": 0.08}
DENSE = {"cer": 0.015, "disk_mb": 16.0}


def only(records: list[Record], **axes: str) -> Section:
    (section,) = sections(records, **axes)
    return section


def labels(section: Section) -> list[str]:
    return [point.label for point in section.points]


def test_corpora_and_headlines_are_never_mixed(make: Callable[..., Record]) -> None:
    other = {"_target_": "slimexp.data.spelling.Spelling", "rate": 0.2}
    source = {"_target_": "slimexp.data.python_source.PythonSource"}
    records = [
        make("prune", {"cer": 0.02}),
        make("prune", {"cer": 0.04}, data=other),
        make("prune", {"bits_per_byte": 2.0}, data=source, headline="bits_per_byte", baseline={}, trivial=8.0),
    ]
    found = sections(records)
    assert [section.title for section in found] == ["spelling (rate=0.08)", "spelling (rate=0.2)", "python_source"]
    assert [section.headline for section in found] == ["cer", "cer", "bits_per_byte"]


def test_headlines_of_other_rows_are_not_compared(make: Callable[..., Record]) -> None:
    def graded(rows: float, cer: float) -> Record:
        dense = {**DENSE, "task_examples": rows}
        one = make("prune", {"cer": cer, "disk_mb": 8.0, "task_examples": rows}, key=f"prune-{rows}", baseline=dense)
        return replace(one, baseline_key="dense")

    few, many = sections([graded(8, 0.01), graded(811, 0.02)])
    assert [section.title for section in (few, many)] == ["spelling on 8 rows", "spelling on 811 rows"]
    assert [len(section.points) for section in (few, many)] == [2, 2]  # each with its own dense model


def test_a_dense_model_that_was_measured_on_other_rows_since_keeps_its_folder_and_results(
    make: Callable[..., Record],
) -> None:
    """Of its records the last counts: that of other rows must not take the dense model from those before."""
    own, others = {"task": "scores/dense/task-b.npz"}, {"task": "scores/prune/task-a.npz"}
    dense = make("dense", {**DENSE, "task_examples": 811}, artifact="run/dense/artifact")
    dense = replace(dense, baseline_key=dense.key, scores=own)
    few = make("prune", {"cer": 0.02, "disk_mb": 8.0, "task_examples": 8}, baseline={"cer": 0.01, "task_examples": 8})
    few = replace(few, baseline_key=dense.key, scores=others)
    made = with_dense([few], {dense.key: dense})[-1]
    assert (made.key, made.artifact) == (dense.key, "run/dense/artifact") and made.dense
    assert made.metrics["cer"] == made.baseline["cer"] == 0.01
    assert made.scores == {"task": "scores/dense/task-a.npz"}
    section = next(one for one in sections([few, dense]) if one.title.endswith(" 8 rows"))
    assert section.points[0].artifacts == ("run/dense/artifact",)


def test_a_dense_model_known_by_its_figures_alone_is_named_by_its_path(make: Callable[..., Record]) -> None:
    config = {"data": SPELLING, "model": {"path": "runs/pruned"}, "baseline": {"path": "zoo:t5"}}
    section = only([make("evaluate", {"cer": 0.02, "disk_mb": 8.0}, config=config)])
    assert labels(section) == ["dense [model.path=zoo:t5]", "evaluate [model.path=runs/pruned]"]


@pytest.mark.parametrize("weights_mb", [15.9, 15.8])
def test_a_dense_model_without_a_record_is_the_recorded_one_with_its_very_figures(
    weights_mb: float, make: Callable[..., Record]
) -> None:
    figures = {"cer": 0.015, "disk_mb": 16.0, "weights_mb": 15.9, "params_live": 7e6, "params_nonzero": 7e6}
    dense = make("dense", figures)
    dense = replace(dense, baseline_key=dense.key)
    evaluated = make("evaluate", {"cer": 0.02, "disk_mb": 8.0}, baseline={**figures, "weights_mb": weights_mb})
    found = with_dense([dense, replace(evaluated, baseline_key="evaluated-dense")])
    same = weights_mb == 15.9
    assert [record.baseline_key == dense.key for record in found] == ([True, True] if same else [True, False, False])


def test_groups_are_in_the_order_in_which_their_keys_appear() -> None:
    assert grouped([3, 1, 4, 5, 9], lambda number: number % 2) == [[3, 1, 5, 9], [4]]


def test_environments_count_records_and_leave_out_models_without_one(make_record: Callable[..., Record]) -> None:
    records = [make_record("a", seed=1), make_record("b"), make_record(""), make_record("c", versions={"torch": "3"})]
    found = environments_of(records)
    assert [(one["records"], one["seeds"], one["versions"]) for one in found] == [
        (2, [0, 1], {"torch": "2"}),
        (1, [0], {"torch": "3"}),
    ]
