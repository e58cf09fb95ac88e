import logging

import pytest

from slimexp.data.base import Example, Split
from slimexp.data.hold_out import hold_out, text_key

NONE: dict[Split, int | None] = {"train": None, "validation": None, "test": None}


def examples(*numbers: int) -> list[Example]:
    return [Example(f"Row {number}") for number in numbers]


def sources(rows: list[Example]) -> list[str]:
    return [example.source for example in rows]


@pytest.mark.fast
def test_missing_splits_are_disjoint_shares_of_train_in_its_order() -> None:
    rows = examples(*range(100))
    splits = hold_out({"train": rows}, share=0.1, limits=NONE, seed=0)
    assert {split: len(part) for split, part in splits.items()} == {"train": 80, "validation": 10, "test": 10}
    assert sorted(sources([row for part in splits.values() for row in part])) == sorted(sources(rows))
    assert all(part == [row for row in rows if row in part] for part in splits.values())
    other = hold_out({"train": rows}, share=0.1, limits=NONE, seed=1)
    assert other["test"] != splits["test"] and hold_out({"train": rows}, share=0.1, limits=NONE, seed=0) == splits


@pytest.mark.fast
def test_a_split_of_few_rows_gets_one() -> None:
    splits = hold_out({"train": examples(0, 1, 2)}, share=0.01, limits=NONE, seed=0)
    assert {split: len(part) for split, part in splits.items()} == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.fast
def test_a_text_stays_in_one_split_alone(caplog: pytest.LogCaptureFixture) -> None:
    splits = hold_out(
        {"train": [*examples(1, 2, 3), Example("  ROW   2 ")], "validation": examples(2, 4), "test": examples(4, 5)},
        share=0.1,
        limits=NONE,
        seed=0,
    )
    assert {split: sources(part) for split, part in splits.items()} == {
        "test": ["Row 4", "Row 5"],
        "validation": ["Row 2"],
        "train": ["Row 1", "Row 3"],
    }
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


@pytest.mark.fast
def test_limits_choose_the_same_rows_whatever_their_order() -> None:
    limits: dict[Split, int | None] = {"train": 5, "validation": 2, "test": None}
    rows: dict[Split, list[Example]] = {
        "train": examples(*range(20)),
        "validation": examples(30, 31, 32),
        "test": examples(40, 41),
    }
    splits = hold_out(rows, share=0.1, limits=limits, seed=0)
    assert {split: len(part) for split, part in splits.items()} == {"train": 5, "validation": 2, "test": 2}
    assert splits["train"] == [row for row in rows["train"] if row in splits["train"]]
    backwards = hold_out({split: part[::-1] for split, part in rows.items()}, share=0.1, limits=limits, seed=0)
    assert {split: part[::-1] for split, part in backwards.items()} == splits


@pytest.mark.fast
def test_case_and_blanks_make_no_other_text() -> None:
    assert text_key(Example("  The  ROW\n2")) == text_key(Example("the row 2")) != text_key(Example("the row2"))
