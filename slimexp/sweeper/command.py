"""The command ``hydra/sweeper=pareto``: check the command line, sweep, show the front."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.trial import FrozenTrial

from slimexp.config.build import build
from slimexp.config.check import check
from slimexp.config.composition import CONF_DIR, chosen, options
from slimexp.config.secret import written
from slimexp.host import console
from slimexp.host.progress import counted
from slimexp.pipeline.preflight import corpus_for
from slimexp.record.settings import flat
from slimexp.record.stage import key, shaping
from slimexp.sweeper.doubt import ByRecords, is_open
from slimexp.sweeper.settings import MOST_SEED, Direction, Settings, check_settings, parse_promotion
from slimexp.sweeper.space import Space
from slimexp.sweeper.sweep import Sweep

_RULES = "slimexp.stopper."  # callbacks that stop a trial
_SHAPING = ("model", "baseline", "data", "pipeline", "trainer", "measure")
FOLDER = "sweep"  # below the run's: the journal, and the trials' logs
SIZE = "disk_mb"
ALL_FAILED = 1  # exit status
_RETRY = "mend what their lines above say, and add hydra.sweeper.retry_failed=true to do them again"


def sweep(
    arguments: Sequence[str], composed: Callable[[list[str]], DictConfig], settings: Mapping[str, Any]
) -> list[FrozenTrial]:
    """Sweep; returns the front.

    Args:
        arguments: Overrides, some of which have several values.
        composed: Overrides -> config.
        settings: Name -> value, as in ``conf/hydra/sweeper/pareto.yaml``.

    Raises:
        ValueError: Something in them is wrong; raised before the first trial.
    """
    names = [item.name for item in fields(Settings) if item.name != "promotion"]
    check_settings(settings, [*names, "promote"])
    space = Space.parse(arguments)
    if settings["sampler"] is None:
        space.check_grid(settings["trials"])
    promotion = parse_promotion(settings["promote"])
    configs = [
        _checked(composed(space.overrides(values))) for values in counted(list(space.singles()), "checking trial")
    ]
    cfg = configs[0]
    if rules := [name for name, node in cfg.callback.items() if str(node.get("_target_")).startswith(_RULES)]:
        _refuse_seeds(settings["seeds"])
        promotion = replace(promotion, overrides=(*promotion.overrides, *(f"~callback.{name}" for name in rules)))
    if promotion.most:
        for values in counted(list(space.singles()), "checking promoted trial"):
            _checked(composed([*space.overrides(values), *promotion.overrides]))
    runs = Path(cfg.runs)
    objectives, limits = _objectives(cfg, settings["objectives"]), settings["limits"] or {}
    _check_measured(cfg, [*objectives, *limits])
    values = {name: value for name, value in settings.items() if name != "promote"}
    values |= {"objectives": objectives, "limits": limits, "promotion": promotion}
    group = [f"logger.group={cfg.name}"] if OmegaConf.select(cfg, "logger.group", default=0) is None else []
    space = Space((*space.fixed, *group), space.swept)
    content, fixed = _content(cfg)
    folder = runs / cfg.name / FOLDER
    run = Sweep(
        space=space,
        folder=folder,
        settings=Settings(**values),
        content=content,
        fixed=fixed,
        judge=ByRecords(runs, objectives),
    )
    if run.done and not cfg.resume:
        raise ValueError(
            f"resume=false does everything anew, and {run.done} trials are finished in {folder}: leave it out to "
            "go on with them, or give name=... for a new sweep"
        )
    print(f"sweep: {run.total} trials, {settings['workers']} at a time; logs and journal in {folder}", flush=True)
    with console.interruptible(console.GOES_ON):  # Hydra may be given a task by others than our own main
        front = run.run()
    print("\n".join([*_table(run, front), *_in_earnest(run, front)]))
    print(f"python -m slimexp.report {runs}   draws every stage that was measured (--watch, --wandb: see --help)")
    _end_where_all_failed(run)
    return front


def _end_where_all_failed(run: Sweep) -> None:
    if 0 < run.failures == run.done:
        print(f"error: all {run.done} trials failed: {_RETRY}", file=sys.stderr)
        sys.exit(ALL_FAILED)


def _checked(cfg: DictConfig) -> DictConfig:
    """A trial's config, once it is checked.

    Raises:
        ValueError: Something in it is wrong.
    """
    with open_dict(cfg):
        cfg.pop("hydra", None)
    check(cfg)
    if not cfg.keep_training_state:
        raise ValueError("keep_training_state must be true in a sweep, whose trials go on from stages that they share")
    if not 0 <= cfg.seed <= MOST_SEED:
        raise ValueError(f"seed must be in 0 to {MOST_SEED}, got {cfg.seed}")
    for group in ("pipeline", "measure", "callback"):
        for node in cfg[group].values():
            build(node)  # refuses values out of range
    return cfg


def _content(cfg: DictConfig) -> tuple[str, dict[str, Any]]:
    """Everything that shapes a trial's results, as a digest and by key; swept keys have their first values in it."""
    parts: dict[str, Any] = {
        name: OmegaConf.to_container(cfg[name], resolve=True) for name in _SHAPING if cfg.get(name) is not None
    }
    parts |= {"trainer": shaping(parts["trainer"]), "save_dtype": cfg.save_dtype, "seed": cfg.seed}
    texts = {name: written(cfg[name]) for name in parts}
    return key(parts), dict(flat({**texts, "trainer": shaping(texts["trainer"])}))


def _refuse_seeds(seeds: Sequence[int]) -> None:
    if seeds:
        raise ValueError(
            f"hydra.sweeper.seeds must be empty where a rule stops trials, got {list(seeds)}: a trial would have to "
            "pass once per seed; give hydra.sweeper.promote.seeds to the points that are left"
        )


def _objectives(cfg: DictConfig, objectives: Mapping[str, Direction] | None) -> dict[str, Direction]:
    """The objectives of the settings; where there are none, quality on the corpus and size on disk."""
    if objectives:
        return dict(objectives)
    corpus = corpus_for(build(cfg.model), cfg.data.copy())
    return {corpus.headline: corpus.direction, SIZE: "min"}


def _check_measured(cfg: DictConfig, metrics: Sequence[str]) -> None:
    """Refuse a metric that no measure of the run gives for models of its corpus."""
    task = corpus_for(build(cfg.model), cfg.data.copy()).task
    patterns = {pattern for node in chosen(cfg.measure).values() for pattern in build(node).figure_names(task)}
    for name in metrics:
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            raise ValueError(
                f"no measure of this run gives '{name}': {_way_out(name, list(chosen(cfg.measure)), patterns)}"
            )


def _way_out(name: str, measures: Sequence[str], patterns: Collection[str]) -> str:
    """The measure that would give a metric; where none would, the metrics of the run's own measures."""
    for other in (name for name in options("measure") if name not in measures):
        measure: Any = get_class(OmegaConf.load(CONF_DIR / "measure" / f"{other}.yaml")._target_)
        if any(fnmatchcase(name, pattern) for pattern in measure.directions):
            return f"{other} does, add it by 'measure=[{','.join([*measures, other])}]'"
    close = get_close_matches(name, patterns, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}choose among {', '.join(sorted(patterns))}, or add a measure"


def _table(run: Sweep, front: Sequence[FrozenTrial]) -> Iterator[str]:
    ends = {"failed": run.failures, "were stopped": run.stopped}
    ended = "".join(f", {count} of them {ending}" for ending, count in ends.items() if count)
    yield f"front of {' and '.join(run.objectives)} after {run.done} trials{ended}:"
    for trial in front:
        yield _trial(run, trial)
    if not front:
        yield "  none: no trial finished within the limits"
    if run.doubt.may_belong:
        yield "dominated, but not surely (they may belong to the front):"
    for trial in run.doubt.may_belong:
        yield _trial(run, trial)
    if any(map(is_open, run.doubt.probabilities.values())):
        yield "? not separable: the probability that another trial dominates it"


def _in_earnest(run: Sweep, front: Sequence[FrozenTrial]) -> Iterator[str]:
    """The promoted points, with their new metrics."""
    if run.promoted:
        yield f"promoted ({' '.join(run.settings.promotion.overrides)}):"
    for trial in [*front, *run.doubt.may_belong]:
        if (stored := run.promoted.get(trial.number)) is not None and stored["error"] is None:
            yield _row({name: stored["metrics"][name] for name in run.objectives if name in stored["metrics"]}, trial)


def _trial(run: Sweep, trial: FrozenTrial) -> str:
    """A trial with its objectives, and the probability that it is dominated where the data leave that open."""
    shown = _row(dict(zip(run.objectives, trial.values, strict=True)), trial)
    probability = run.doubt.probabilities.get(trial.number)
    return shown if probability is None or not is_open(probability) else f"{shown}  ? {probability:.0%}"


def _row(figures: Mapping[str, float], trial: FrozenTrial) -> str:
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f"  {metrics}  {' '.join(f'{key}={value}' for key, value in trial.params.items())}"
