"""A sweep over several objectives: Optuna proposes, warm workers train, the front is what is left.

A freed worker gets the next trial at once, whatever the others do. Every trial is in the study's journal before it runs
and after, so the same command goes on with what is missing. Stages that trials share are trained once.
"""

import json
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from slimexp.analysis import pareto
from slimexp.sweeper.account import OUTCOME, REPEATS, Told, ended, means, over, same, told
from slimexp.sweeper.changes import CONTENT, FIXED, changes
from slimexp.sweeper.journal import DIRECTIONS, Expected
from slimexp.sweeper.planned import MakeSampler, Params, planned
from slimexp.sweeper.pool import local
from slimexp.sweeper.promotion import Promotion
from slimexp.sweeper.screen import Lines, clock, screen
from slimexp.sweeper.settings import Direction, check_together, check_values
from slimexp.sweeper.space import Space
from slimexp.sweeper.storage import alone, lasting, lock_in_database, open_storage, study_name
from slimexp.sweeper.worker import Job, MakePool, Outcome, Pool, Prepare, train

TRIES = 3  # of a trial whose worker is lost, in one command

_SWEEP = "sweep"  # user attribute of the study
_PROMOTED = "promoted-{}"  # of the study, by trial: what is finished takes no more attributes
_PLACES = ("runs=", "logger.group=")  # overrides that change nothing of a result


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
        trial_timeout: Seconds after which a trial is ended, and has failed; ``None`` for no limit.
        retry_failed: Whether trials that failed in an earlier command are done again.
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
        trial_timeout: float | None = None,
        retry_failed: bool = False,
        promotion: Promotion = Promotion(),  # noqa: B008 (frozen)
        pool: MakePool = local.Pool,
        prepare: Prepare = train,
    ) -> None:
        values = {
            "workers": workers, "threads": threads, "trials": trials, "seeds": seeds, "trial_timeout": trial_timeout,
            "objectives": objectives, "limits": limits, "max_failures": max_failures,
        }  # fmt: skip
        check_values(values)
        check_together(values, space.swept, is_endless=sampler is not None)
        self.space = space
        self.content = content
        self.fixed = dict(fixed or {})
        self.objectives = dict(objectives)
        self.limits = dict(limits)
        self.seeds = list(seeds)
        self.folder = folder
        self.storage = storage
        self.fail_fast = fail_fast
        self.max_failures = max_failures
        self.trial_timeout = trial_timeout
        self.retry_failed = retry_failed
        self.promotion = promotion
        self.promoted: dict[int, dict[str, Any]] = {}
        self.pool = _made(pool, workers=workers, threads=threads, prepare=prepare)
        self.directions = [DIRECTIONS[way] for way in self.objectives.values()]
        self.sampler = planned(space.swept, sampler, self.limits, self.directions)
        grid = list(space.grid(trials)) if sampler is None else []
        self.total = len(grid) if sampler is None else int(trials or 0)
        self._asked: dict[int, Trial] = {}
        self._tries: Counter[Job] = Counter()
        self._again: deque[Job] = deque()
        self._repeats: dict[Any, list[int]] = defaultdict(list)
        self.done, self.failures, self.stopped = 0, 0, 0
        self.screen = Lines()
        with alone(folder) as self._lock, lasting(storage):
            self.study = self._study(storage)
            self._take_up(grid)
            self._lock = self._lock.pop_all()  # held on, where nothing was wrong

    def run(self) -> list[FrozenTrial]:
        """Do every trial that is missing, and what is promoted; returns the front."""
        began, known = time.monotonic(), self.done
        if known:
            follow = ", the others follow" if known < self.total else ": nothing is left to do"
            print(f"sweep: {known} of {self.total} trials are finished{follow}")
        self.screen = screen(list(self.space.swept), self.objectives, self.total, self.done, self.failures)
        for trial in self.front() if known else ():
            self.screen.reached(trial.number, trial.params, trial.values)
        with self._lock, lasting(self.storage), self.pool, self.screen:
            while True:
                while self.pool.free and (self._again or self._missing > 0):
                    self._start()
                if not self.pool.busy:
                    break
                for job, outcome in self.pool.finished():
                    if lost := self._lost(job, outcome):
                        self.screen.returned(job.number, lost)
                        continue
                    said = self._finish(job, outcome)
                    left = (time.monotonic() - began) / (self.done - known) * (self.total - self.done)
                    self.screen.finished(job.number, said, failures=self.failures, left=left)
                    self._give_up(job)
            front = self.front()
            self._promote(front)
            return front

    @property
    def _missing(self) -> int:
        """Trials that no worker has had yet."""
        return self.total - self.done - self.pool.busy - len(self._again)

    def front(self) -> list[FrozenTrial]:
        """Finished trials that no other dominates, among those that keep the limits, by the last objective."""
        known = self.study.get_trials(states=[TrialState.COMPLETE])
        trials = [trial for trial in known if self._ended(trial) and max(over(trial)) <= 0]
        front = pareto.front([trial.values for trial in trials], list(self.objectives.values()))
        return sorted((trials[index] for index in front), key=lambda trial: trial.values[-1])

    def _promote(self, front: Sequence[FrozenTrial]) -> None:
        """Run points of the front again under the promotion's overrides, where that has not been done before."""
        jobs: deque[Job] = deque()
        for trial in self.promotion.chosen(front):
            overrides = (*self.space.overrides(trial.params), *self.promotion.overrides)
            commands = _seeded(overrides, self.promotion.seeds or self.seeds)
            known = self.study.user_attrs.get(_PROMOTED.format(trial.number))
            if isinstance(known, Mapping) and _placeless(known.get("commands")) == _placeless(commands):
                self.promoted[trial.number] = dict(known)
            else:
                log = self.folder / f"trial-{trial.number:04d}-promoted.log"
                jobs.append(Job(trial.number, commands, log, self.trial_timeout))
        if jobs:
            print(f"the front in earnest: {len(jobs)} points under {' '.join(self.promotion.overrides)}", flush=True)
        while jobs or self._again or self.pool.busy:
            while self.pool.free and (self._again or jobs):
                self.pool.submit((self._again or jobs).popleft())
            for job, outcome in self.pool.finished():
                if lost := self._lost(job, outcome):
                    print(f"trial {job.number} in earnest: {lost}", flush=True)
                    continue
                figures = {"commands": job.overrides, "metrics": means(outcome.metrics), "error": outcome.error}
                self.promoted[job.number] = figures
                if outcome.error is None:
                    self.study.set_user_attr(_PROMOTED.format(job.number), figures)
                else:
                    print(f"FAILED  trial {job.number} in earnest: {outcome.error} (all in {job.log})", flush=True)

    def _start(self) -> None:
        """Give a worker the next trial, or one again that was lost."""
        if self._again:
            job = self._again.popleft()
            self.screen.started(job.number, self._asked[job.number].params)
            self.pool.submit(job)
            return
        trial = self.study.ask(fixed_distributions=dict(self.space.swept))
        if numbers := self._repeats.get(same(trial.params)):
            trial.set_user_attr(REPEATS, numbers.pop(0))
        commands = _seeded(self.space.overrides(trial.params), self.seeds)
        self._asked[trial.number] = trial
        self.screen.started(trial.number, trial.params)
        log = self.folder / f"trial-{trial.number:04d}.log"
        self.pool.submit(Job(trial.number, commands, log, self.trial_timeout))

    def _lost(self, job: Job, outcome: Outcome) -> str | None:
        """Put a job back whose worker is lost, a few times; the line that tells it."""
        if outcome.error is None or outcome.cause != "worker":
            return None
        self._tries[job] += 1
        if self._tries[job] == TRIES:
            return None
        self._again.append(job)
        swept = _words(self._asked[job.number].params) if job.number in self._asked else ""
        return f"lost     {swept}: {outcome.error}; it is done again"

    def _finish(self, job: Job, outcome: Outcome) -> str:
        """Write down what became of a trial; the line that tells it."""
        trial = self._asked.pop(job.number)
        if self._tries[job] == TRIES:  # whatever it is, it follows the trial
            outcome = Outcome((), f"{outcome.error}, {TRIES} times", outcome.seconds)
        what = told(outcome, list(self.objectives), self.limits)
        trial.set_user_attr(OUTCOME, what)
        self._tell(trial, what)
        self._count(what)
        swept, begin = _words(trial.params), f"[{self.done}/{self.total}]"
        metrics, error = what["metrics"], what["error"]
        if what["stopped"]:
            return f"{begin} stopped  {swept}: {error}"
        if error is not None:
            then = "; the same command does it again" if what["again"] else ""
            return f"{begin} FAILED  {swept}: {error} (all in {job.log}){then}"
        if max(what["over"], default=0) <= 0:
            self.screen.reached(trial.number, trial.params, [metrics[name] for name in self.objectives])
        figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in self.objectives)
        return f"{begin} {figures}  {swept}  {clock(outcome.seconds)}"

    def _tell(self, trial: Trial | int, what: Told) -> None:
        if what["stopped"]:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif what["error"] is not None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, [what["metrics"][name] for name in self.objectives])

    def _count(self, what: Told) -> None:
        self.done += 1
        self.stopped += what["stopped"]
        self.failures += what["error"] is not None and not what["stopped"]

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
        objectives = dict(zip(self.objectives, self.directions, strict=True))
        expected = Expected(study=str(self.folder), described=_SWEEP, objectives=objectives, mark=OUTCOME)
        opened = open_storage(storage, self.folder, expected)
        name = study_name(opened, self.folder, journal=storage is None)
        lock_in_database(self._lock, storage, name)
        if name in optuna.get_all_study_names(opened):  # asked first: Optuna writes a line when it finds it there
            study = optuna.load_study(study_name=name, storage=opened, sampler=self.sampler)
        else:
            study = optuna.create_study(
                study_name=name, storage=opened, sampler=self.sampler, directions=self.directions, load_if_exists=True
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
        if not isinstance(theirs, Mapping):
            if study.get_trials(deepcopy=False):
                print(f"warning: what {self.folder} is a sweep of is lost: it is taken to be this one", file=sys.stderr)
            study.set_user_attr(_SWEEP, mine)
        elif changed := changes(theirs, json.loads(json.dumps(mine))):
            raise ValueError(
                f"{self.folder} holds another sweep ({changed}): repeat its command to go on with it, or give name=... "
                "for a new one"
            )
        if study.directions != self.directions:
            raise ValueError(f"the journal in {self.folder} is of other objectives: give name=... for a new sweep")
        return study

    def _take_up(self, grid: Iterable[Params]) -> None:
        """Count what is finished, and plan what is missing; what a dead controller left running is missing."""
        trials = self.study.get_trials(deepcopy=False)
        known = {trial.number: self._ended(trial) for trial in trials}
        repeated = {trial.user_attrs.get(REPEATS) for trial in trials if known[trial.number]}
        finished: dict[Any, Told] = {}
        for trial in trials:
            what = known[trial.number]
            if trial.state == TrialState.RUNNING:
                self._close(trial, what)
            if what is None or trial.number in repeated:
                continue
            if what["again"] or (self.retry_failed and what["error"] is not None and not what["stopped"]):
                self._plan_again(trial)
                continue
            finished[same(trial.params) if self.sampler.then is None else trial.number] = what
        for what in finished.values():
            self._count(what)
        self.sampler.plan.extend(params for params in grid if same(params) not in finished)

    def _close(self, trial: FrozenTrial, what: Told | None) -> None:
        """End a trial that a dead controller left running, as it did where that is written down; else plan it again."""
        if what is not None:
            self._tell(trial.number, what)
            return
        self.study.tell(trial.number, state=TrialState.FAIL)
        if trial.params.keys() == self.space.swept.keys() and REPEATS not in trial.user_attrs:
            self._plan_again(trial)

    def _plan_again(self, trial: FrozenTrial) -> None:
        """Have a combination proposed once more, where no grid does it, and note what it is instead of."""
        if self.sampler.then is not None:
            self.sampler.plan.append(dict(trial.params))
            self._repeats[same(trial.params)].append(trial.number)

    def _ended(self, trial: FrozenTrial) -> Told | None:
        return ended(trial, self.space.swept, list(self.objectives))


def _made(pool: MakePool, **settings: Any) -> Pool:
    """The workers.

    Raises:
        ValueError: A setting of the pool's own that it has not.
    """
    try:
        return pool(**settings)
    except TypeError as error:
        raise ValueError(f"hydra.sweeper.pool: {error}") from error


def _seeded(overrides: Sequence[str], seeds: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Command lines of one point, one per seed."""
    return tuple((*overrides, f"seed={seed}") for seed in seeds) or (tuple(overrides),)


def _placeless(commands: object) -> object:
    """Command lines as JSON has them, without what tells where results lie."""
    if not isinstance(commands, Sequence) or not all(isinstance(line, Sequence) for line in commands):
        return None
    return [[word for word in line if not str(word).startswith(_PLACES)] for line in commands]


def _words(params: Mapping[str, Any]) -> str:
    """``prune.sparsity=0.5 quantize.bits=4``."""
    return " ".join(f"{key.removeprefix('pipeline.')}={value}" for key, value in params.items())
