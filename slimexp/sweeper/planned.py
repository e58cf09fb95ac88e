"""The sampler of a sweep: it proposes a plan of combinations, then those of an Optuna sampler."""

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from slimexp.sweeper.trial_result import limit_violations

Params = dict[str, Any]
MakeSampler = Callable[..., BaseSampler]


class Planned(BaseSampler):
    """Proposes the combinations of a plan first, and then those of another sampler.

    Args:
        space: Key -> distribution of its values.
        then: Sampler once the plan is exhausted; ``None`` for a sweep of the plan alone.

    Attributes:
        plan: Combinations that are still to be proposed, in order.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], then: BaseSampler | None) -> None:
        self.space = dict(space)
        self.then = then
        self.plan: deque[Params] = deque()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self.plan or self.then is None:
            return self.space
        return self.then.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self.plan:
            return self.plan.popleft()
        assert self.then is not None
        return self.then.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        assert self.then is not None
        return self.then.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self.then is not None:
            self.then.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        if self.then is not None:
            self.then.after_trial(study, trial, state, values)


def planned(
    space: Mapping[str, BaseDistribution],
    sampler: MakeSampler | None,
    limits: Mapping[str, float],
    directions: Sequence[StudyDirection],
) -> Planned:
    """A sampler with an empty plan; the one after it gets the limits where it can take them as constraints.

    Raises:
        ValueError: The sampler refuses its settings, when it is made or when it proposes.
    """
    if sampler is None:
        return Planned(space, None)
    if not callable(sampler):
        raise ValueError(f"hydra.sweeper.sampler must be chosen by hydra/sweeper/sampler=NAME, got {sampler!r}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        probe = _sampler(sampler, limits)  # proposes once in vain: some look at their settings only then
        optuna.create_study(sampler=Planned(space, probe), directions=list(directions)).ask(dict(space))
        return Planned(space, _sampler(sampler, limits))
    except (TypeError, ValueError, OverflowError, ImportError) as error:
        raise ValueError(f"hydra.sweeper.sampler: {error}") from error


def _sampler(make: MakeSampler, limits: Mapping[str, float]) -> BaseSampler:
    parameters = inspect.signature(getattr(make, "func", make)).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # some have been so for years
        warnings.simplefilter("ignore", FutureWarning)  # constraints_func: what follows it is not in Optuna 4
        return make(constraints_func=limit_violations) if limits and "constraints_func" in parameters else make()
