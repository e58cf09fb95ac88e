"""Settings of a sweep, the keys of ``conf/hydra/sweeper/pareto.yaml``: Hydra checks its own node against no type."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from slimexp.config.annotation import is_of_type
from slimexp.config.binding import unknown
from slimexp.sweeper.planned import MakeSampler
from slimexp.sweeper.pool import local
from slimexp.sweeper.promotion import Promotion
from slimexp.sweeper.worker import MakePool

Direction = Literal["min", "max"]

MOST_SEED = 2**32 - 1  # of NumPy's, and so of Lightning's seed_everything
MOST_TRIALS = 1_000_000  # that a journal and a plan in memory can hold
_MOST = {"workers": 100_000, "threads": 4096, "trials": MOST_TRIALS, "max_failures": MOST_TRIALS}
_LEAST = {"max_failures": 0}
_OPTIONAL = {"trials", "max_failures"}
_PROMOTE = ("most", "overrides", "seeds")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a sweep: how it chooses, runs and repeats its trials.

    Attributes:
        objectives: Metric -> ``min`` or ``max``.
        limits: Metric -> largest value of a point on the front; samplers that take constraints keep to them.
        sampler: Partial of an Optuna sampler; ``None`` for every combination.
        trials: Number of trials; ``None`` for every combination.
        seeds: Seeds of every trial, over which its metrics are averaged; empty to leave the seed as it is.
        storage: URL of a database; ``None`` for the journal file.
        workers: Largest number of processes at a time.
        threads: Threads of torch in each process.
        fail_fast: Whether the first failure ends the sweep.
        max_failures: Number of failures with which the sweep goes on; ``None`` for any number.
        trial_timeout: Seconds after which a trial is ended, and has failed; ``None`` for no limit.
        retry_failed: Whether trials that failed in an earlier command run again.
        promotion: Which points of the front run again, under which overrides.
        pool: Where the workers are: a partial without their number, threads and work.

    Raises:
        ValueError: A value is of the wrong kind or out of range.
    """

    objectives: Mapping[str, Direction]
    limits: Mapping[str, float]
    sampler: MakeSampler | None
    trials: int | None
    seeds: Sequence[int]
    storage: str | None
    workers: int
    threads: int
    fail_fast: bool
    max_failures: int | None
    trial_timeout: float | None = None
    retry_failed: bool = False
    promotion: Promotion = field(default_factory=Promotion)
    pool: MakePool = local.Pool

    def __post_init__(self) -> None:
        check_values(vars(self))


def check_settings(settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse unknown keys and values of the wrong kind or out of range.

    Args:
        settings: Name -> value, as in the config.
        names: Names that a sweep has settings of.

    Raises:
        ValueError: The first that is wrong.
    """
    if stray := [name for name in settings if name not in names]:
        raise ValueError(unknown(str(stray[0]), "hydra.sweeper", names))
    for name in ("fail_fast", "retry_failed"):
        if not isinstance(settings[name], bool):
            raise ValueError(f"hydra.sweeper.{name} must be true or false, got {settings[name]!r}")
    if not isinstance(settings["storage"], str | None):
        kind = type(settings["storage"]).__name__  # not the value: there may be a password in it
        raise ValueError(f"hydra.sweeper.storage must be the URL of a database, or null, got a value of type {kind}")
    if "pool" in settings and not callable(settings["pool"]):
        raise ValueError(f"hydra.sweeper.pool must be chosen by hydra/sweeper/pool=NAME, got {settings['pool']!r}")
    if settings["sampler"] is not None and not callable(settings["sampler"]):
        sampler = settings["sampler"]
        raise ValueError(f"hydra.sweeper.sampler must be chosen by hydra/sweeper/sampler=NAME, got {sampler!r}")
    check_values({**settings, **{name: {} for name in ("objectives", "limits") if settings[name] is None}})


def check_values(settings: Mapping[str, Any]) -> None:
    """Refuse numbers, times, metrics and seeds of the wrong kind or out of range; others are passed over.

    Raises:
        ValueError: The first that is wrong.
    """
    for name in _MOST:
        check_count(name, settings[name])
    check_timeout(settings["trial_timeout"])
    check_objectives(settings["objectives"])
    check_limits(settings["limits"])
    check_seeds("hydra.sweeper.seeds", settings["seeds"])


def check_together(settings: Settings, swept: Container[str]) -> None:
    """Refuse settings that are right one by one, and contradict each other.

    Args:
        settings: Settings of the sweep.
        swept: Keys that have several values.

    Raises:
        ValueError: The first contradiction.
    """
    if settings.seeds and "seed" in swept:
        raise ValueError("seed is swept and hydra.sweeper.seeds sets it: leave one of them out")
    if not settings.objectives:
        raise ValueError("a sweep needs an objective: give hydra.sweeper.objectives={METRIC: min}")
    if settings.sampler is not None and settings.trials is None:
        raise ValueError("a sampler proposes without end: say how many by hydra.sweeper.trials=N")


def check_count(name: str, value: object) -> None:
    """Refuse what is no whole number, or too few or many."""
    if value is None and name in _OPTIONAL:
        return
    least = _LEAST.get(name, 1)
    if not _is_whole(value):
        raise ValueError(f"hydra.sweeper.{name} must be a whole number, got {value!r}")
    if value < least:  # type: ignore[operator]
        none = ", or null for any number" if name == "max_failures" else ""
        raise ValueError(f"hydra.sweeper.{name} must be >= {least}{none}, got {value}")
    if value > _MOST[name]:  # type: ignore[operator]
        raise ValueError(f"hydra.sweeper.{name} must be at most {_MOST[name]}, got {value}")


def check_timeout(value: object) -> None:
    """Refuse what is no time to wait."""
    if value is not None and not (_is_number(value) and 0 < value <= 1e9):  # type: ignore[operator]
        raise ValueError(f"hydra.sweeper.trial_timeout must be seconds > 0, or null for no limit, got {value!r}")


def check_objectives(value: object) -> None:
    """Refuse what is no metric -> min or max."""
    if not isinstance(value, Mapping) or not all(
        _is_text(name) and _is_text(direction) for name, direction in value.items()
    ):
        raise ValueError(
            f"hydra.sweeper.objectives must be metrics with min or max each, as {{cer: min}}; got {_plain(value)}"
        )
    if wrong := {name: direction for name, direction in value.items() if direction not in get_args(Direction)}:
        raise ValueError(f"an objective must be min or max, got {wrong}")


def check_limits(value: object) -> None:
    """Refuse what is no metric -> largest value."""
    if not isinstance(value, Mapping) or not all(_is_text(name) and _is_number(limit) for name, limit in value.items()):
        raise ValueError(
            f"hydra.sweeper.limits must be metrics with a number each, as {{cer: 0.1}}; got {_plain(value)}"
        )
    if infinite := {name: limit for name, limit in value.items() if not math.isfinite(limit)}:
        raise ValueError(f"hydra.sweeper.limits must be finite, got {infinite}: leave out what has no limit")


def check_seeds(name: str, value: object) -> None:
    """Refuse what are no seeds, or the same ones."""
    if not _is_list(value) or not all(map(_is_whole, value)):  # type: ignore[call-overload]
        raise ValueError(f"{name} must be a list of whole numbers, got {_plain(value)}")
    assert isinstance(value, Iterable)
    seeds = list(value)
    if wrong := [seed for seed in seeds if not 0 <= seed <= MOST_SEED]:
        raise ValueError(f"{name} must be in 0 to {MOST_SEED}, got {wrong[0]}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{name} must be distinct, got {seeds}")


def parse_promotion(node: object) -> Promotion:
    """The promotion that ``hydra.sweeper.promote`` describes.

    Raises:
        ValueError: It is of another kind.
    """
    if not isinstance(node, Mapping) or set(node) != set(_PROMOTE):
        raise ValueError(f"hydra.sweeper.promote must hold most, overrides and seeds, got {_plain(node)}")
    if not _is_whole(node["most"]):
        raise ValueError(f"hydra.sweeper.promote.most must be a whole number, got {node['most']!r}")
    if not _is_list(node["overrides"]) or not all(map(_is_text, node["overrides"])):
        raise ValueError(f"hydra.sweeper.promote.overrides must be a list of overrides, got {node['overrides']!r}")
    check_seeds("hydra.sweeper.promote.seeds", node["seeds"])
    return Promotion(node["most"], tuple(node["overrides"]), tuple(node["seeds"]))


def _is_whole(value: object) -> bool:
    return is_of_type("int", value)


def _is_number(value: object) -> bool:
    return is_of_type("float", value)


def _is_text(value: object) -> bool:
    return is_of_type("str", value)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _plain(value: object) -> object:
    """A value as it is typed, in plain containers."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if _is_list(value) else value  # type: ignore[call-overload]
