"""Lines of a journal are read as far as they are whole, and what is wrong with the others is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from slimexp.sweeper.operation import CREATE_TRIAL, USER, Op, read

pytestmark = pytest.mark.fast


def op(code: int, **rest: Any) -> Op:
    return {"op_code": code, "worker_id": "w" * 60, **rest}


CREATE = op(CREATE_TRIAL, study_id=0, datetime_start="2025-01-01T00:00:00.000000")
ATTRIBUTE = op(USER, trial_id=0, user_attr={"a": 1})


@pytest.mark.parametrize(
    ("line", "operations", "fault"),
    [
        (json.dumps(ATTRIBUTE), [ATTRIBUTE], None),
        (json.dumps(ATTRIBUTE) + json.dumps(CREATE), [ATTRIBUTE, CREATE], "is glued or cut"),
        (json.dumps(CREATE)[:70] + json.dumps(ATTRIBUTE), [ATTRIBUTE], "is glued or cut"),
        ("", [], "is blank"),
        ("{", [], "is no JSON"),
        ("[" * 10**5, [], "is no JSON"),
        ("[]", [], "is no operation"),
        (json.dumps({**ATTRIBUTE, "trial_id": -1}), [], "is no operation"),
        (json.dumps({**ATTRIBUTE, "op_code": True}), [], "is no operation"),
    ],
    ids=["whole", "glued", "cut", "blank", "no JSON", "brackets", "a list", "no trial", "a switch"],
)
def test_a_line(tmp_path: Path, line: str, operations: list[Op], fault: str | None) -> None:
    path = tmp_path / "journal"
    path.write_text(f"{line}\n")
    journal = read(path)
    assert [operation for _, operation in journal.lines] == operations
    assert journal.faults.get(1) == fault and (journal.lost > 0) == (fault is not None)


def test_the_last_line_may_be_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(json.dumps(ATTRIBUTE) + "\n" + json.dumps(CREATE)[:-1])
    assert read(path).faults == {2: "is cut off"}
    path.write_text(json.dumps(ATTRIBUTE) + "\n" + json.dumps(CREATE))
    journal = read(path)
    assert journal.faults == {2: "has no end"} and journal.lines[-1] == (2, CREATE)


def test_what_creates_a_trial_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(f"{json.dumps(CREATE)}\n" * 2)
    journal = read(path)
    assert journal.lines == [(1, CREATE)] and journal.faults == {2: "is there twice"}
