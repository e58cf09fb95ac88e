"""Results of trials as a study stores them, read so that nothing half written is taken for a result."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from slimexp.record.figures import OF_LAYER
from slimexp.sweeper.worker import Outcome

OUTCOME = "outcome"  # user attribute of a trial that has ended: its TrialResult
REPEATS = "repeats"  # user attribute of a trial: number of the trial in whose place it runs


class TrialResult(TypedDict):
    """The result of a trial that has ended, as a study stores it.

    Attributes:
        metrics: Metric -> mean over the seeds.
        error: Why it failed or was stopped; ``None`` after a success.
        seconds: Wall time in the worker.
        over: How far the trial is above each limit, in the metric's unit; empty after a failure.
        stopped: Whether a rule stopped it.
        again: Whether the worker or the machine ended it, so that the next command runs it again.
    """

    metrics: dict[str, float]
    error: str | None
    seconds: float
    over: list[float]
    stopped: bool
    again: bool


def trial_result(outcome: Outcome, objectives: Sequence[str], limits: Mapping[str, float]) -> TrialResult:
    """The result to store of an outcome; a trial without finite objectives and limited metrics has failed."""
    metrics = means(outcome.metrics)
    error = outcome.error or _metric_fault(metrics, [*objectives, *limits])
    return {
        "metrics": metrics,
        "error": error,
        "seconds": outcome.seconds,
        "over": [] if error else [metrics[name] - limit for name, limit in limits.items()],
        "stopped": outcome.stopped,
        "again": outcome.error is not None and outcome.cause != "trial",
    }


def stored_result(
    trial: FrozenTrial, swept: Mapping[str, BaseDistribution], objectives: Sequence[str]
) -> TrialResult | None:
    """The stored result of a trial; ``None`` where it has not ended, or a part of it is lost."""
    stored = trial.user_attrs.get(OUTCOME)
    if not isinstance(stored, Mapping) or not {"metrics", "error", "over"} <= stored.keys():
        return None
    if trial.params.keys() != swept.keys() or not all(_lies_in(trial.params[key], swept[key]) for key in swept):
        return None
    metrics, error, over = stored["metrics"], stored["error"], stored["over"]
    if not isinstance(metrics, dict) or not isinstance(error, str | None) or not isinstance(over, list):
        return None
    if trial.state.is_finished() and (error is None) != (trial.state == TrialState.COMPLETE):
        return None
    if error is None and not (all(_finite(metrics.get(name)) for name in objectives) and all(map(_finite, over))):
        return None
    seconds = stored.get("seconds")
    return {
        "metrics": metrics,
        "error": error,
        "seconds": float(seconds) if isinstance(seconds, int | float) else 0.0,
        "over": over,
        "stopped": stored.get("stopped") is True or trial.state == TrialState.PRUNED,
        "again": stored.get("again") is True,
    }


def limit_violations(trial: FrozenTrial) -> list[float]:
    """Distance of a trial above each limit, at most 0 where it keeps it: Optuna's ``constraints_func``."""
    stored = trial.user_attrs.get(OUTCOME)
    return (stored.get("over") if isinstance(stored, Mapping) else None) or [0.0]


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metric -> mean over seeds, of the metrics that every seed has."""
    if not rows:
        return {}
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if all(name in row for row in rows)}


def combination(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Parameters as a hashable key: equal combinations have equal keys, whatever the order of their names."""
    return tuple(sorted(params.items()))


def _metric_fault(metrics: Mapping[str, float], required: Sequence[str]) -> str | None:
    """The fault of a trial's metrics: the first required one that is absent or not finite."""
    for name in required:
        if name not in metrics:
            measured = sorted(metric for metric in metrics if OF_LAYER not in metric)
            return f"'{name}' was not measured; there are {', '.join(measured)}"
        if not math.isfinite(metrics[name]):
            return f"'{name}' is {metrics[name]}"
    return None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lies_in(value: object, distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return _finite(value) and distribution.low <= value <= distribution.high  # type: ignore[operator]
