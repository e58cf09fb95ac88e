"""A sweep over several objectives: Optuna proposes, warm workers train, the front is what is left.

A freed worker gets the next trial at once, whatever the others do. Every trial is in the study's journal before it runs
and after, so the same command goes on with what is missing. Stages that trials share are trained once.
"""

import inspect
import json
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from slimexp import pareto
from slimexp.record import OF_LAYER
from slimexp.sweeper.difference import CONTENT, FIXED, changes
from slimexp.sweeper.pool import local
from slimexp.sweeper.promotion import Promotion
from slimexp.sweeper.screen import Lines, clock, screen
from slimexp.sweeper.space import Space
from slimexp.sweeper.storage import alone, open_storage
from slimexp.sweeper.worker import Job, MakePool, Outcome, Prepare, train

Direction = Literal["min", "max"]
Params = dict[str, Any]
MakeSampler = Callable[..., BaseSampler]

_OPTUNAS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
_SWEEP, _OUTCOME = "sweep", "outcome"  # user attributes: of the study, and of a trial
_PROMOTED = "promoted-{}"  # of the study, by trial: what is finished takes no more attributes


class Planned(BaseSampler):
    """Hands out given combinations first, then asks another sampler.

    Args:
        space: Key -> distribution.
        then: What proposes once the plan is through; ``None`` for a sweep of the plan alone.
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


class Sweep:
    """One sweep, new or to go on with.

    Args:
        space: What it goes through.
        content: Whatever else shapes its trials, as text or a digest: the same place holds no sweep of other content.
        fixed: The same by key, so that what has changed can be named.
        objectives: Metric -> ``min`` or ``max``.
        limits: Metric -> largest value with which a point is any good; samplers that can keep to them.
        sampler: Partial of an Optuna sampler; ``None`` for every combination.
        trials: Trials in all; ``None`` for every combination.
        seeds: Seeds of every trial, whose mean counts; none to leave the seed as it is.
        folder: Where the journal and the logs are.
        storage: URL of a database; ``None`` for the journal file.
        workers: Processes at a time.
        threads: Of torch, in each.
        fail_fast: Whether the first failure ends the sweep.
        max_failures: Failures with which it goes on; ``None`` for any number.
        promotion: Which points of the front are run again, in earnest.
        pool: Where the workers are; a partial without their number, threads and work.
        prepare: What a worker does first.

    Raises:
        ValueError: A value that cannot be, a study at ``folder`` of another sweep, or a process at work on it.
    """

    def __init__(
        self,
        *,
        space: Space,
        content: str = "",
        fixed: Mapping[str, Any] | None = None,
        objectives: Mapping[str, Direction],
        limits: Mapping[str, float],
        sampler: MakeSampler | None,
        trials: int | None,
        seeds: Sequence[int],
        folder: Path,
        storage: str | None,
        workers: int,
        threads: int,
        fail_fast: bool,
        max_failures: int | None,
        promotion: Promotion = Promotion(),  # noqa: B008 (frozen)
        pool: MakePool = local.Pool,
        prepare: Prepare = train,
    ) -> None:
        for name, value in {"workers": workers, "threads": threads, "trials": trials}.items():
            if value is not None and value < 1:
                raise ValueError(f"hydra.sweeper.{name} must be >= 1, got {value}")
        if max_failures is not None and max_failures < 0:
            raise ValueError(f"hydra.sweeper.max_failures must be >= 0, or null for any number, got {max_failures}")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"hydra.sweeper.seeds must be distinct, got {list(seeds)}")
        if seeds and "seed" in space.swept:
            raise ValueError("seed is swept and hydra.sweeper.seeds sets it: leave one of them out")
        if not objectives:
            raise ValueError("a sweep needs an objective: give hydra.sweeper.objectives={METRIC: min}")
        if wrong := {name: way for name, way in objectives.items() if way not in get_args(Direction)}:
            raise ValueError(f"an objective must be min or max, got {wrong}")
        if sampler is not None and trials is None:
            raise ValueError("a sampler proposes without end: say how many by hydra.sweeper.trials=N")
        self.space = space
        self.content = content
        self.fixed = dict(fixed or {})
        self.objectives = dict(objectives)
        self.limits = dict(limits)
        self.seeds = list(seeds)
        self.folder = folder
        self.fail_fast = fail_fast
        self.max_failures = max_failures
        self.promotion = promotion
        self.promoted: dict[int, dict[str, Any]] = {}
        try:
            self.pool = pool(workers=workers, threads=threads, prepare=prepare)
        except TypeError as error:
            raise ValueError(f"hydra.sweeper.pool: {error}") from error
        self.sampler = Planned(space.swept, _made(sampler, self.limits))
        grid = list(space.grid()) if sampler is None else []
        self.total = min(trials or len(grid), len(grid)) if sampler is None else int(trials or 0)
        self._asked: dict[int, Trial] = {}
        self.done, self.failures, self.stopped = 0, 0, 0
        self.screen = Lines()
        self._lock = alone(storage, folder)
        try:
            self.study = self._study(storage)
            self._take_up(grid)
        except BaseException:
            self._lock.close()
            raise

    def run(self) -> list[FrozenTrial]:
        """Do every trial that is missing, and what is promoted; returns the front."""
        began, known = time.monotonic(), self.done
        if known:
            follow = ", the others follow" if known < self.total else ": nothing is left to do"
            print(f"sweep: {known} of {self.total} trials are finished{follow}")
        self.screen = screen(list(self.space.swept), self.objectives, self.total, self.done, self.failures)
        for trial in self.front() if known else ():
            self.screen.reached(trial.number, trial.params, trial.values)
        with self._lock, self.pool, self.screen:
            while True:
                while self.pool.free and self.done + self.pool.busy < self.total:
                    self._start()
                if not self.pool.busy:
                    break
                for job, outcome in self.pool.finished():
                    said = self._finish(job, outcome)
                    left = (time.monotonic() - began) / (self.done - known) * (self.total - self.done)
                    self.screen.finished(job.number, said, failures=self.failures, left=left)
                    self._give_up(job)
            front = self.front()
            self._promote(front)
            return front

    def front(self) -> list[FrozenTrial]:
        """Finished trials that no other dominates, among those that keep the limits, by the last objective."""
        trials = [trial for trial in self.study.get_trials(states=[TrialState.COMPLETE]) if max(_over(trial)) <= 0]
        front = pareto.front([trial.values for trial in trials], list(self.objectives.values()))
        return sorted((trials[index] for index in front), key=lambda trial: trial.values[-1])

    def _promote(self, front: Sequence[FrozenTrial]) -> None:
        """Run points of the front again under the promotion's overrides, where that has not been done before."""
        jobs: deque[Job] = deque()
        for trial in self.promotion.chosen(front):
            overrides = (*self.space.overrides(trial.params), *self.promotion.overrides)
            commands = _seeded(overrides, self.promotion.seeds or self.seeds)
            known = self.study.user_attrs.get(_PROMOTED.format(trial.number))
            if known is not None and known["commands"] == json.loads(json.dumps(commands)):
                self.promoted[trial.number] = known
            else:
                jobs.append(Job(trial.number, commands, self.folder / f"trial-{trial.number:04d}-promoted.log"))
        if jobs:
            print(f"the front in earnest: {len(jobs)} points under {' '.join(self.promotion.overrides)}", flush=True)
        while jobs or self.pool.busy:
            while jobs and self.pool.free:
                self.pool.submit(jobs.popleft())
            for job, outcome in self.pool.finished():
                told = {"commands": job.overrides, "metrics": _means(outcome.metrics), "error": outcome.error}
                self.promoted[job.number] = told
                if outcome.error is None:
                    self.study.set_user_attr(_PROMOTED.format(job.number), told)
                else:
                    print(f"FAILED  trial {job.number} in earnest: {outcome.error} (all in {job.log})", flush=True)

    def _start(self) -> None:
        trial = self.study.ask(fixed_distributions=dict(self.space.swept))
        commands = _seeded(self.space.overrides(trial.params), self.seeds)
        self._asked[trial.number] = trial
        self.screen.started(trial.number, trial.params)
        self.pool.submit(Job(trial.number, commands, self.folder / f"trial-{trial.number:04d}.log"))

    def _finish(self, job: Job, outcome: Outcome) -> str:
        """Write down what became of a trial; the line that tells it."""
        trial = self._asked.pop(job.number)
        metrics = _means(outcome.metrics)
        error = outcome.error or _absent(metrics, [*self.objectives, *self.limits])
        self.done += 1
        swept = " ".join(f"{_short(key)}={value}" for key, value in trial.params.items())
        over = [] if error else [metrics[name] - limit for name, limit in self.limits.items()]
        told = {"metrics": metrics, "error": error, "seconds": outcome.seconds, "over": over}
        trial.set_user_attr(_OUTCOME, told)
        if outcome.stopped:
            self.stopped += 1
            self.study.tell(trial, state=TrialState.PRUNED)
            return f"[{self.done}/{self.total}] stopped  {swept}: {error}"
        if error is not None:
            self.failures += 1
            self.study.tell(trial, state=TrialState.FAIL)
            return f"[{self.done}/{self.total}] FAILED  {swept}: {error} (all in {job.log})"
        values = [metrics[name] for name in self.objectives]
        self.study.tell(trial, values)
        if max(over, default=0) <= 0:
            self.screen.reached(trial.number, trial.params, values)
        figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in self.objectives)
        return f"[{self.done}/{self.total}] {figures}  {swept}  {clock(outcome.seconds)}"

    def _give_up(self, job: Job) -> None:
        allowed = 0 if self.fail_fast else self.max_failures
        if allowed is not None and self.failures > allowed:
            raise ValueError(
                f"the sweep ends after {self.failures} failed trials, of which "
                f"{'fail_fast' if self.fail_fast else 'max_failures'} allows {allowed}; the last is in {job.log}, and "
                "what is finished is kept"
            )

    def _study(self, storage: str | None) -> Study:
        """The study of this sweep, with nothing in it or to go on with.

        Raises:
            ValueError: The folder holds another sweep.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=str(self.folder),
            storage=open_storage(storage, self.folder),
            sampler=self.sampler,
            directions=[_OPTUNAS[way] for way in self.objectives.values()],
            load_if_exists=True,
        )
        mine = {
            **self.space.described(),
            "seeds": self.seeds,
            "objectives": self.objectives,
            "limits": self.limits,
            CONTENT: self.content,
            FIXED: self.fixed,
        }
        theirs = study.user_attrs.get(_SWEEP)
        if theirs is None:
            study.set_user_attr(_SWEEP, mine)
        elif changed := changes(theirs, json.loads(json.dumps(mine))):
            raise ValueError(
                f"{self.folder} holds another sweep ({changed}): repeat its command to go on with it, or give name=... "
                "for a new one"
            )
        return study

    def _take_up(self, grid: Iterable[Params]) -> None:
        """Count what is finished, and plan what is missing; what a dead controller left running is missing."""
        finished = set()
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
                if trial.params.keys() == self.space.swept.keys() and self.sampler.then is not None:
                    self.sampler.plan.append(trial.params)
            elif _OUTCOME in trial.user_attrs:
                self.done += 1
                self.failures += trial.state == TrialState.FAIL
                self.stopped += trial.state == TrialState.PRUNED
                finished.add(_same(trial.params))
        self.sampler.plan.extend(params for params in grid if _same(params) not in finished)


def _made(sampler: MakeSampler | None, limits: Mapping[str, float]) -> BaseSampler | None:
    """The sampler, told of the limits where it can keep to them."""
    if sampler is None:
        return None
    parameters = inspect.signature(getattr(sampler, "func", sampler)).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # some have been so for years
        warnings.simplefilter("ignore", FutureWarning)  # constraints_func: what follows it is not in Optuna 4
        try:
            return sampler(constraints_func=_over) if limits and "constraints_func" in parameters else sampler()
        except (TypeError, ValueError) as error:
            raise ValueError(f"hydra.sweeper.sampler: {error}") from error


def _over(trial: FrozenTrial) -> list[float]:
    """How far a trial is above each limit; at most 0 where it keeps it."""
    return trial.user_attrs.get(_OUTCOME, {}).get("over") or [0.0]


def _seeded(overrides: Sequence[str], seeds: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Command lines of one point, one per seed."""
    return tuple((*overrides, f"seed={seed}") for seed in seeds) or (tuple(overrides),)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metric -> mean over seeds, of those that every seed has."""
    if not rows:
        return {}
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if all(name in row for row in rows)}


def _absent(metrics: Mapping[str, float], wanted: Sequence[str]) -> str | None:
    """What is wrong with the metrics that a trial gave."""
    for name in wanted:
        if name not in metrics:
            known = sorted(one for one in metrics if OF_LAYER not in one)
            return f"'{name}' was not measured; there are {', '.join(known)}"
        if not math.isfinite(metrics[name]):
            return f"'{name}' is {metrics[name]}"
    return None


def _same(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _short(key: str) -> str:
    """``pipeline.prune.sparsity`` -> ``prune.sparsity``."""
    return key.removeprefix("pipeline.")
