"""A command says how many rows it has, and that few of them measure nothing."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from slimexp.pipeline import rows


@pytest.mark.parametrize(
    ("held_out", "warned"), [((29, 40), "29 of validation"), ((30, 1), "1 of test"), ((30, 30), "")]
)
def test_counts_are_said_and_few_rows_are_warned_of(
    held_out: tuple[int, int], warned: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    validation, test = held_out
    corpus: Any = SimpleNamespace(splits={"train": [0] * 1200, "validation": [0] * validation, "test": [0] * test})
    with caplog.at_level(logging.WARNING):
        rows.tell(corpus)
    assert capsys.readouterr().out == f"rows of text: 1,200 train, {validation} validation, {test} test\n"
    assert [f"fewer than 30 held-out rows ({warned})" in line for line in caplog.messages] == [True] * bool(warned)
