"""What a study says of its trials: which ended and how, read so that nothing half written is taken for a result."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from slimexp.record.figures import OF_LAYER
from slimexp.sweeper.worker import Outcome

OUTCOME = "outcome"  # user attribute of a trial
REPEATS = "repeats"  # another: number of the trial that it is done instead of


class Told(TypedDict):
    """What is written down of a trial that has ended.

    Attributes:
        metrics: Means over the seeds.
        error: Why it failed or was stopped; ``None`` after a success.
        seconds: In the worker.
        over: How far each limit is exceeded; empty after a failure.
        stopped: Whether a rule stopped it.
        again: Whether its surroundings ended it, so that the next command does it again.
    """

    metrics: dict[str, float]
    error: str | None
    seconds: float
    over: list[float]
    stopped: bool
    again: bool


def told(outcome: Outcome, objectives: Sequence[str], limits: Mapping[str, float]) -> Told:
    """What to write down of an outcome."""
    metrics = means(outcome.metrics)
    error = outcome.error or _absent(metrics, [*objectives, *limits])
    return {
        "metrics": metrics,
        "error": error,
        "seconds": outcome.seconds,
        "over": [] if error else [metrics[name] - limit for name, limit in limits.items()],
        "stopped": outcome.stopped,
        "again": outcome.error is not None and outcome.cause != "trial",
    }


def ended(trial: FrozenTrial, swept: Mapping[str, BaseDistribution], objectives: Sequence[str]) -> Told | None:
    """What is written down of a trial; ``None`` where it has not ended, or a part of it is lost."""
    known = trial.user_attrs.get(OUTCOME)
    if not isinstance(known, Mapping) or not {"metrics", "error", "over"} <= known.keys():
        return None
    if trial.params.keys() != swept.keys() or not all(_lies_in(trial.params[key], swept[key]) for key in swept):
        return None
    metrics, error, over = known["metrics"], known["error"], known["over"]
    if not isinstance(metrics, dict) or not isinstance(error, str | None) or not isinstance(over, list):
        return None
    if trial.state.is_finished() and (error is None) != (trial.state == TrialState.COMPLETE):
        return None
    if error is None and not (all(_finite(metrics.get(name)) for name in objectives) and all(map(_finite, over))):
        return None
    seconds = known.get("seconds")
    return {
        "metrics": metrics,
        "error": error,
        "seconds": float(seconds) if isinstance(seconds, int | float) else 0.0,
        "over": over,
        "stopped": known.get("stopped") is True or trial.state == TrialState.PRUNED,
        "again": known.get("again") is True,
    }


def over(trial: FrozenTrial) -> list[float]:
    """How far a trial is above each limit; at most 0 where it keeps it."""
    known = trial.user_attrs.get(OUTCOME)
    return (known.get("over") if isinstance(known, Mapping) else None) or [0.0]


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metric -> mean over seeds, of those that every seed has."""
    if not rows:
        return {}
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if all(name in row for row in rows)}


def same(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A combination, to be looked up."""
    return tuple(sorted(params.items()))


def _absent(metrics: Mapping[str, float], wanted: Sequence[str]) -> str | None:
    """What is wrong with the metrics that a trial gave."""
    for name in wanted:
        if name not in metrics:
            known = sorted(one for one in metrics if OF_LAYER not in one)
            return f"'{name}' was not measured; there are {', '.join(known)}"
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
