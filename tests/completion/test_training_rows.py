"""Rows of a teacher alone and beside gold ones; what is held out stays the corpus' own."""

from collections.abc import Callable
from typing import Any

import pytest

from slimexp.completion.store import Text
from slimexp.completion.training_rows import TrainingRows, mixed
from slimexp.data.base import Corpus, Example, Task

Make = Callable[..., Any]


class Noisy(Corpus):
    """Ten rows whose source says the epoch."""

    task: Task = "seq2seq"
    headline = "cer"
    direction = "min"

    def load(self) -> Any:
        return {
            "train": [Example(f"row {i}", f"gold {i}") for i in range(10)],
            "validation": [Example("v", "v")],
            "test": [Example("t", "t")],
        }

    def training_example(self, index: int, epoch: int) -> Example:
        return Example(f"row {index} of {epoch}", f"gold {index}")

    def grade(self, predictions: Any, examples: Any) -> dict[str, float]:
        return {"cer": float(len(predictions))}

    def trivial(self, examples: Any) -> float:
        return 0.5


def written(count: int) -> list[Text]:
    return [Text(row, 0, f"row {row} of 0", f"taught {row}", True) for row in range(count)]


@pytest.mark.fast
def test_alone() -> None:
    base = Noisy()
    rows = TrainingRows(base, written(4), share=1.0, seed=0)
    assert [row.target for row in rows.splits["train"]] == [f"taught {i}" for i in range(4)]
    assert rows.training_example(2, 5) == Example("row 2 of 0", "taught 2")
    assert rows.is_fixed and not base.is_fixed
    assert rows.splits["validation"] is base.splits["validation"] and rows.splits["test"] is base.splits["test"]
    assert (rows.task, rows.headline, rows.direction) == ("seq2seq", "cer", "min")
    assert rows.grade(["a"], [Example("v", "v")]) == {"cer": 1.0} and rows.trivial([]) == 0.5
    assert rows.by_row([], []) == {}


@pytest.mark.fast
def test_beside_gold_rows_which_keep_their_noise() -> None:
    rows = TrainingRows(Noisy(), written(4), share=0.5, seed=0)
    train = rows.splits["train"]
    assert len(train) == 8 and not rows.is_fixed
    gold = [int(row.source.split()[1]) for row in train[4:]]
    assert len(set(gold)) == 4
    assert rows.training_example(5, 7) == Example(f"row {gold[1]} of 7", f"gold {gold[1]}")
    again = TrainingRows(Noisy(), written(4), share=0.5, seed=0)
    assert again.gold == rows.gold and TrainingRows(Noisy(), written(4), share=0.5, seed=1).gold != rows.gold


@pytest.mark.fast
@pytest.mark.parametrize(
    ("texts", "gold", "share", "expected"),
    [(100, 100, 1.0, (100, 0)), (100, 100, 0.5, (100, 100)), (100, 100, 0.8, (100, 25)), (100, 100, 0.25, (33, 100)),
     (10, 100, 0.25, (10, 30)), (3, 1, 0.01, (1, 1))],
)  # fmt: skip
def test_as_many_as_make_up_the_share(texts: int, gold: int, share: float, expected: tuple[int, int]) -> None:
    assert mixed(texts, gold, share) == expected


@pytest.mark.fast
def test_a_causal_text_is_its_prompt_and_what_follows() -> None:
    class Causal(Noisy):
        task: Task = "causal_lm"

    rows = TrainingRows(Causal(), [Text(0, 0, "def f", "(x):", False)], share=1.0, seed=0)
    assert rows.splits["train"] == [Example("def f(x):")]
