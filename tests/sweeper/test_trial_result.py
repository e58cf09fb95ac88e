"""Results of trials: means over seeds, limits, and nothing half written taken for one."""

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from slimexp.sweeper.trial_result import OUTCOME, combination, limit_violations, means, stored_result, trial_result
from slimexp.sweeper.worker import Outcome

pytestmark = pytest.mark.fast

SWEPT = {"x": CategoricalDistribution(["1", "2"]), "y": FloatDistribution(0.0, 1.0)}
RESULT = {"metrics": {"cer": 0.5}, "error": None, "seconds": 2.0, "over": [-1.0], "stopped": False, "again": False}


def frozen(result: Any, state: TrialState = TrialState.COMPLETE, **params: Any) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=state,
        params={"x": "1", "y": 0.5, **params},
        distributions=SWEPT,
        values=[0.5] if state == TrialState.COMPLETE else None,
        user_attrs={OUTCOME: result},
    )


def test_a_success_has_means_and_distances_to_the_limits() -> None:
    rows = ({"cer": 0.25, "disk_mb": 4.0, "extra": 1.0}, {"cer": 0.75, "disk_mb": 4.0})
    result = trial_result(Outcome(rows, None, 3.0), ["cer"], {"disk_mb": 3.0})
    assert result["metrics"] == means(rows) == {"cer": 0.5, "disk_mb": 4.0}
    assert (result["error"], result["over"], result["seconds"]) == (None, [1.0], 3.0)


@pytest.mark.parametrize(
    ("metrics", "error"),
    [({"disk_mb": 1.0}, "'cer' was not measured; there are disk_mb"), ({"cer": float("nan")}, "'cer' is nan")],
)
def test_an_objective_that_is_absent_or_not_finite_is_a_failure(metrics: dict[str, float], error: str) -> None:
    result = trial_result(Outcome((metrics,), None, 1.0), ["cer"], {})
    assert result["error"] == error and result["over"] == [] and not result["again"]


@pytest.mark.parametrize(("cause", "again"), [("trial", False), ("worker", True), ("machine", True)])
def test_what_the_trial_did_not_cause_runs_again(cause: Any, again: bool) -> None:
    assert trial_result(Outcome((), "it failed", 1.0, cause=cause), ["cer"], {})["again"] is again


def test_a_whole_result_is_read_back() -> None:
    trial = frozen(RESULT)
    assert stored_result(trial, SWEPT, ["cer"]) == RESULT
    assert limit_violations(trial) == [-1.0]


@pytest.mark.parametrize(
    "damage",
    [
        None,
        "text",
        {**RESULT, "metrics": []},
        {**RESULT, "metrics": {}},
        {**RESULT, "metrics": {"cer": float("inf")}},
        {**RESULT, "metrics": {"cer": True}},
        {**RESULT, "over": ["a"]},
        {**RESULT, "error": 1},
        {**RESULT, "error": "it failed"},
        {key: value for key, value in RESULT.items() if key != "over"},
    ],
    ids=str,
)
def test_half_a_result_is_none(damage: Any) -> None:
    assert stored_result(frozen(damage), SWEPT, ["cer"]) is None


def test_parameters_of_another_space_are_no_result() -> None:
    trial = frozen(RESULT)
    assert stored_result(trial, {"x": SWEPT["x"]}, ["cer"]) is None
    assert stored_result(trial, {**SWEPT, "y": FloatDistribution(0.6, 1.0)}, ["cer"]) is None
    assert stored_result(trial, {**SWEPT, "x": CategoricalDistribution(["2"])}, ["cer"]) is None


def test_a_trial_without_a_result_breaks_no_limit() -> None:
    assert limit_violations(frozen(None)) == [0.0]


def test_a_combination_has_no_order() -> None:
    assert combination({"a": 1, "b": 2}) == combination({"b": 2, "a": 1}) != combination({"a": 1, "b": 3})
