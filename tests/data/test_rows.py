"""Results by question on the disk, and that figures follow from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimexp.data import grading, rows
from slimexp.data.base import Example
from slimexp.data.rows import Rows, Scores
from slimexp.file.integrity import Damaged

pytestmark = pytest.mark.fast


def scores() -> Scores:
    questions = np.array([3, 2**64 - 1, 5], dtype=np.uint64)
    nats = Rows(questions, np.array([0.1, 2.0, 1 / 3]), np.array([1.0, 4.0, 2.0]), exponential=True)
    return Scores(
        {"perplexity": nats.figure, "acc": 2 / 3}, {"perplexity": nats, "acc": Rows(questions, *np.ones((2, 3)))}
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    rows.write(path := tmp_path / "a" / "task.npz", expected := scores(), {"test": "task"})
    found = rows.read(path)
    assert found.figures == expected.figures and list(found.rows) == list(expected.rows)
    for name, row in expected.rows.items():
        assert found.rows[name].exponential == row.exponential
        for part in ("questions", "tops", "bottoms"):
            assert np.array_equal(getattr(found.rows[name], part), getattr(row, part))
    assert [file.name for file in path.parent.iterdir()] == ["task.npz"]


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_is_no_results(damage: bytes | None, tmp_path: Path) -> None:
    rows.write(path := tmp_path / "task.npz", scores(), {})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(Damaged, match=r"task\.npz holds no results"):
        rows.read(path)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    np.savez(path := tmp_path / "task.npz", about=np.array([{"figures": {}}], dtype=object))
    with pytest.raises(Damaged, match="holds no results"):
        rows.read(path)


@pytest.mark.parametrize(
    ("grade", "by_row", "predictions", "examples"),
    [
        (
            grading.grade_text,
            grading.text_by_row,
            ["a cat", "teh dog", ""],
            [Example("x", "a cat"), Example("y", "the dog"), Example("z", "b")],
        ),
        (
            grading.grade_likelihood,
            grading.likelihood_by_row,
            [(3.5, 4, 2), (9.25, 7, 0)],
            [Example("four"), Example("seven of")],
        ),
    ],
)
def test_figures_follow_from_their_rows(
    grade: Any, by_row: Any, predictions: list[Any], examples: list[Example]
) -> None:
    figures = grade(predictions, examples)
    found = by_row(predictions, examples)
    assert {name: row.figure for name, row in found.items()} == pytest.approx(
        {name: value for name, value in figures.items() if not name.endswith("_stderr")}
    )
    assert len({tuple(row.questions.tolist()) for row in found.values()}) == 1


def test_accuracy_follows_from_its_rows() -> None:
    examples = [Example(f"text {i}", label=i % 2) for i in range(5)]
    figures = grading.grade_label([0, 0, 0, 1, 1], examples, classes=2)
    assert grading.label_by_row([0, 0, 0, 1, 1], examples)["accuracy"].figure == pytest.approx(figures["accuracy"])
