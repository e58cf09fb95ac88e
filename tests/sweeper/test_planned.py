"""A plan is proposed first, then the sampler after it, which gets the limits where it takes constraints."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection

from slimexp.sweeper.planned import Planned, planned
from slimexp.sweeper.trial_result import limit_violations

pytestmark = pytest.mark.fast

SPACE = {"x": CategoricalDistribution(["1", "2"])}


def test_the_plan_comes_first() -> None:
    space = {"x": optuna.distributions.CategoricalDistribution(["1", "2"])}
    sampler = Planned(space, optuna.samplers.RandomSampler(seed=0))
    sampler.plan.append({"x": "2"})
    study = optuna.create_study(sampler=sampler)
    assert study.ask(fixed_distributions=space).params == {"x": "2"}
    assert study.ask(fixed_distributions=space).params["x"] in ("1", "2")


@pytest.mark.parametrize(("limits", "expected"), [({"disk_mb": 3.0}, limit_violations), ({}, None)])
def test_limits_are_constraints(limits: dict[str, float], expected: object) -> None:
    made: list[Any] = []

    def sampler(constraints_func: Callable[..., Any] | None = None) -> optuna.samplers.BaseSampler:
        made.append(constraints_func)
        return optuna.samplers.RandomSampler(seed=0)

    assert planned(SPACE, sampler, limits, [StudyDirection.MINIMIZE]).then is not None
    assert made == [expected, expected]  # one proposes in vain, so that wrong settings are found before the first trial


def test_a_sampler_that_refuses_its_settings_is_one_error() -> None:
    with pytest.raises(ValueError, match=r"^hydra\.sweeper\.sampler: .*n_startup_trial'"):
        planned(SPACE, lambda: optuna.samplers.TPESampler(n_startup_trial=1), {}, [StudyDirection.MINIMIZE])  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"must be chosen by hydra/sweeper/sampler=NAME, got 'tpe'"):
        planned(SPACE, "tpe", {}, [StudyDirection.MINIMIZE])  # type: ignore[arg-type]


def test_a_grid_is_a_plan_alone() -> None:
    assert planned(SPACE, None, {}, [StudyDirection.MINIMIZE]).then is None
