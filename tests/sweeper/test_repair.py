"""Operations of a damaged journal are put in order, and no trial is taken for finished whose lines are not whole."""

from typing import Any

import pytest
from optuna.study import StudyDirection

from slimexp.sweeper.operation import CREATE_STUDY, CREATE_TRIAL, PARAM, STATE, USER, Op
from slimexp.sweeper.repair import Expected, is_complete, is_in_order

pytestmark = pytest.mark.fast

SWEEP = Expected(study="s", described="sweep", objectives={"cer": StudyDirection.MINIMIZE}, mark="outcome")
COMPLETE = 1  # of Optuna's states


def op(code: int, **rest: Any) -> Op:
    return {"op_code": code, "worker_id": "w", **rest}


def numbered(*ops: Op) -> list[tuple[int, Op]]:
    return list(enumerate(ops, 1))


STUDY = op(CREATE_STUDY, study_name="s", directions=[1])
TRIAL = op(CREATE_TRIAL, study_id=0)
X = op(PARAM, trial_id=0, param_name="x")
OUTCOME = op(USER, trial_id=0, user_attr={"outcome": {"metrics": {"cer": 0.5}}})
END = op(STATE, trial_id=0, state=COMPLETE, values=[0.5])


def test_an_operation_comes_after_what_it_is_about_and_before_its_end() -> None:
    assert is_in_order(numbered(STUDY, TRIAL, X, OUTCOME, END))
    assert not is_in_order(numbered(TRIAL, STUDY, X, OUTCOME, END))
    assert not is_in_order(numbered(STUDY, X, TRIAL))
    assert not is_in_order(numbered(STUDY, TRIAL, END, X))


@pytest.mark.parametrize(
    "ops",
    [
        (STUDY, TRIAL, X, END),
        (STUDY, TRIAL, X, OUTCOME, {**END, "values": [0.25]}),
        (STUDY, TRIAL, X, OUTCOME, END, END),
        (STUDY, TRIAL, TRIAL, {**X, "trial_id": 1}, OUTCOME, END),
    ],
    ids=["no outcome", "values of another trial", "two ends", "a parameter is lost"],
)
def test_a_success_needs_all_its_lines(ops: tuple[Op, ...]) -> None:
    assert is_complete(numbered(STUDY, TRIAL, X, OUTCOME, END), SWEEP)
    assert not is_complete(numbered(*ops), SWEEP)
