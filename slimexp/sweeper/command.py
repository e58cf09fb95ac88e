"""What ``hydra/sweeper=pareto`` does with a command line: check it, sweep, show the front."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.trial import FrozenTrial

from slimexp.config import build, check
from slimexp.sweeper.pareto import Direction, Sweep
from slimexp.sweeper.space import Space

FOLDER = "sweep"  # below the run's: the journal, and the trials' logs
SIZE = "disk_mb"


def sweep(
    arguments: Sequence[str], composed: Callable[[list[str]], DictConfig], settings: Mapping[str, Any]
) -> list[FrozenTrial]:
    """Sweep; returns the front.

    Args:
        arguments: Overrides, some of which have several values.
        composed: Overrides -> config.
        settings: Of the sweep, as in ``conf/hydra/sweeper/pareto.yaml``.

    Raises:
        ValueError: Something in them is wrong; said before the first trial.
    """
    _check_settings(settings)
    space = Space.parse(arguments)
    for values in space.singles():
        cfg = composed(space.overrides(values))
        with open_dict(cfg):
            cfg.pop("hydra", None)
        check(cfg)
        for technique in cfg.pipeline.values():
            build(technique)  # refuses values out of range
    runs = Path(cfg.runs)
    objectives, limits = _objectives(cfg, settings["objectives"]), settings["limits"] or {}
    _check_measured(cfg, [*objectives, *limits])
    chosen = {**settings, "objectives": objectives, "limits": limits}
    group = [f"logger.group={cfg.name}"] if OmegaConf.select(cfg, "logger.group", default=0) is None else []
    space = Space((*space.fixed, *group), space.swept)
    one = Sweep(space=space, folder=runs / cfg.name / FOLDER, **chosen)
    print(f"sweep: {one.total} trials, {settings['workers']} at a time; logs and journal in {one.folder}", flush=True)
    front = one.run()
    print("\n".join(_table(one, front)))
    print(f"python -m slimexp.report {runs}   draws every stage that was measured")
    return front


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse values of the wrong kind; Hydra holds its own node against no signature."""
    for name in ("workers", "threads", "trials", "max_failures"):
        if not isinstance(value := settings[name], int | None) or isinstance(value, bool):
            raise ValueError(f"hydra.sweeper.{name} must be a whole number, got {value!r}")
    for name, kinds, what in (("objectives", (str,), "min or max"), ("limits", (int, float), "a number")):
        value = settings[name]
        if value and not (isinstance(value, Mapping) and all(isinstance(one, kinds) for one in value.values())):
            raise ValueError(f"hydra.sweeper.{name} must be metrics with {what} each, as {{cer: ...}}; got {value}")
    if not isinstance(settings["seeds"], Sequence) or not all(isinstance(seed, int) for seed in settings["seeds"]):
        raise ValueError(f"hydra.sweeper.seeds must be a list of whole numbers, got {settings['seeds']}")


def _objectives(cfg: DictConfig, asked: Mapping[str, Direction] | None) -> dict[str, Direction]:
    """What is asked for, or quality and size."""
    if asked:
        return dict(asked)
    corpus = build(cfg.data)
    return {corpus.headline: corpus.direction, SIZE: "min"}


def _check_measured(cfg: DictConfig, wanted: Sequence[str]) -> None:
    """Refuse a metric that no measure of the run gives."""
    known = {pattern for node in cfg.measure.values() for pattern in build(node).directions}
    for name in wanted:
        if not any(fnmatchcase(name, pattern) for pattern in known):
            raise ValueError(
                f"no measure of this run gives '{name}': choose among {', '.join(sorted(known))}, or add a measure"
            )


def _table(one: Sweep, front: Sequence[FrozenTrial]) -> Iterator[str]:
    failed = f", {one.failures} of them failed" if one.failures else ""
    yield f"front of {' and '.join(one.objectives)} after {one.done} trials{failed}:"
    for trial in sorted(front, key=lambda trial: trial.values[-1]):
        figures = "  ".join(f"{name} {value:.4g}" for name, value in zip(one.objectives, trial.values, strict=True))
        yield f"  {figures}  {' '.join(f'{key}={value}' for key, value in trial.params.items())}"
    if not front:
        yield "  none: no trial finished within the limits"
