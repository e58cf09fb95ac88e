"""A sweep over several objectives: Optuna proposes, warm workers train, the front is what is left.

A freed worker gets the next trial at once, whatever the others do. Every trial is in the study's journal before it runs
and after, so the same command goes on with what is missing. Stages that trials share are trained once.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from slimexp.analysis import pareto
from slimexp.sweeper.changes import CONTENT, FIXED
from slimexp.sweeper.doubt import Doubt, Judge, sure
from slimexp.sweeper.journal import DIRECTIONS
from slimexp.sweeper.planned import Params, planned
from slimexp.sweeper.promotion import without_places
from slimexp.sweeper.screen import Lines, clock, screen
from slimexp.sweeper.settings import Settings, check_together
from slimexp.sweeper.space import Space
from slimexp.sweeper.storage import alone, lasting
from slimexp.sweeper.study import open_study
from slimexp.sweeper.trial_result import (
    OUTCOME,
    REPEATS,
    TrialResult,
    combination,
    limit_violations,
    means,
    stored_result,
    trial_result,
)
from slimexp.sweeper.worker import Job, MakePool, Outcome, Pool, Prepare, train

ATTEMPTS = 3  # of a trial whose worker is lost, in one command

_PROMOTED = "promoted-{}"  # user attribute of the study, by trial: one that has ended takes no more of its own


class Sweep:
    """One sweep, new or to go on with.

    Args:
        space: Overrides of its trials, swept and fixed.
        folder: Where the journal and the logs are.
        settings: How it goes about its trials.
        content: Text or digest of whatever else shapes its trials: a folder holds no sweep of other content.
        fixed: Key -> value of the same, so that a message can name what has changed.
        prepare: What a worker does first; returns what runs one command line.
        judge: Says how sure it is which trials are dominated.

    Attributes:
        total: Number of trials.
        done: Number of trials that have ended, in this command and earlier ones.
        failures: How many of those failed.
        stopped: How many of those a rule stopped.
        promoted: Number of a trial -> ``commands``, ``metrics`` and ``error`` of its promoted run.
        doubt: How sure the front is, once it is there.

    Raises:
        ValueError: Settings contradict each other, the study in ``folder`` is of another sweep, or a process is at work
            on it.
    """

    def __init__(
        self,
        *,
        space: Space,
        folder: Path,
        settings: Settings,
        content: str = "",
        fixed: Mapping[str, Any] | None = None,
        prepare: Prepare = train,
        judge: Judge = sure,
    ) -> None:
        check_together(settings, space.swept)
        self.space, self.folder, self.settings = space, folder, settings
        self.objectives = dict(settings.objectives)
        self.promoted: dict[int, dict[str, Any]] = {}
        self.doubt, self._judge = Doubt(), judge
        self.pool = _pool(settings.pool, workers=settings.workers, threads=settings.threads, prepare=prepare)
        directions = {name: DIRECTIONS[direction] for name, direction in self.objectives.items()}
        self.sampler = planned(space.swept, settings.sampler, settings.limits, list(directions.values()))
        grid = list(space.grid(settings.trials)) if settings.sampler is None else []
        self.total = len(grid) if settings.sampler is None else int(settings.trials or 0)
        self._open: dict[int, Trial] = {}  # trials that have begun and not ended
        self._attempts: Counter[Job] = Counter()
        self._retries: deque[Job] = deque()
        self._repeats: dict[Any, list[int]] = defaultdict(list)
        self.done, self.failures, self.stopped = 0, 0, 0
        self.screen = Lines()
        description = {
            **space.described(),
            "seeds": list(settings.seeds),
            "objectives": self.objectives,
            "limits": dict(settings.limits),
            CONTENT: content,
            FIXED: dict(fixed or {}),
        }
        with alone(folder) as self._lock, lasting(settings.storage):
            self.study = open_study(
                folder,
                storage=settings.storage,
                lock=self._lock,
                sampler=self.sampler,
                objectives=directions,
                description=description,
            )
            self._resume(grid)
            self._lock = self._lock.pop_all()  # held on, where nothing was wrong

    def run(self) -> list[FrozenTrial]:
        """Do every trial that is missing, and what is promoted; returns the front."""
        began, before = time.monotonic(), self.done
        if before:
            follow = ", the others follow" if before < self.total else ": nothing is left to do"
            print(f"sweep: {before} of {self.total} trials are finished{follow}")
        self.screen = screen(list(self.space.swept), self.objectives, self.total, self.done, self.failures)
        for trial in self.front() if before else ():
            self.screen.reached(trial.number, trial.params, trial.values)
        with self._lock, lasting(self.settings.storage), self.pool, self.screen:
            while True:
                while self.pool.free and (self._retries or self._missing > 0):
                    self._start()
                if not self.pool.busy:
                    break
                for job, outcome in self.pool.finished():
                    if message := self._retry(job, outcome):
                        self.screen.returned(job.number, message)
                        continue
                    message = self._finish(job, outcome)
                    left = (time.monotonic() - began) / (self.done - before) * (self.total - self.done)
                    self.screen.finished(job.number, message, failures=self.failures, left=left)
                    self._check_failures(job)
            with self.screen.phase("finding how sure the front is"):
                self.doubt = self._judge(self._within(), front := self.front())
            self._promote(front)
            return front

    @property
    def _missing(self) -> int:
        """Number of trials that no worker has had yet."""
        return self.total - self.done - self.pool.busy - len(self._retries)

    def front(self) -> list[FrozenTrial]:
        """Finished trials that no other dominates, among those that keep the limits, by the last objective."""
        trials = self._within()
        front = pareto.front([trial.values for trial in trials], list(self.objectives.values()))
        return sorted((trials[index] for index in front), key=lambda trial: trial.values[-1])

    def _within(self) -> list[FrozenTrial]:
        """Finished trials that keep the limits."""
        finished = self.study.get_trials(states=[TrialState.COMPLETE])
        return [trial for trial in finished if self._stored(trial) and max(limit_violations(trial)) <= 0]

    def _promote(self, front: Sequence[FrozenTrial]) -> None:
        """Run points of the front again under the promotion's overrides, where that has not been done before."""
        jobs: deque[Job] = deque()
        chosen: dict[int, Params] = {}
        promotion = self.settings.promotion
        for trial in promotion.chosen(front, self.doubt.may_belong):
            chosen[trial.number] = trial.params
            seeds = promotion.seeds or self.settings.seeds
            commands = self.space.command_lines(trial.params, seeds, promotion.overrides)
            stored = self.study.user_attrs.get(_PROMOTED.format(trial.number))
            if isinstance(stored, Mapping) and without_places(stored.get("commands")) == without_places(commands):
                self.promoted[trial.number] = dict(stored)
            else:
                log = self.folder / f"trial-{trial.number:04d}-promoted.log"
                jobs.append(Job(trial.number, commands, log, self.settings.trial_timeout))
        if jobs:
            print(f"promoting {len(jobs)} points of the front: {' '.join(promotion.overrides)}", flush=True)
        while jobs or self._retries or self.pool.busy:
            while self.pool.free and (self._retries or jobs):
                self.pool.submit(job := (self._retries or jobs).popleft())
                self.screen.started(job.number, chosen[job.number], job.log)
            for job, outcome in self.pool.finished():
                self.screen.ended(job.number)
                if message := self._retry(job, outcome):
                    print(f"trial {job.number} promoted: {message}", flush=True)
                    continue
                figures = {"commands": job.overrides, "metrics": means(outcome.metrics), "error": outcome.error}
                self.promoted[job.number] = figures
                if outcome.error is None:
                    self.study.set_user_attr(_PROMOTED.format(job.number), figures)
                else:
                    print(f"FAILED  trial {job.number} promoted: {outcome.error} (all in {job.log})", flush=True)

    def _start(self) -> None:
        """Give a worker the next trial, or once more one whose worker was lost."""
        if self._retries:
            self.pool.submit(job := self._retries.popleft())
            self.screen.started(job.number, self._open[job.number].params, job.log)
            return
        trial = self.study.ask(fixed_distributions=dict(self.space.swept))
        if numbers := self._repeats.get(combination(trial.params)):
            trial.set_user_attr(REPEATS, numbers.pop(0))
        commands = self.space.command_lines(trial.params, self.settings.seeds)
        self._open[trial.number] = trial
        log = self.folder / f"trial-{trial.number:04d}.log"
        self.screen.started(trial.number, trial.params, log)
        self.pool.submit(Job(trial.number, commands, log, self.settings.trial_timeout))

    def _retry(self, job: Job, outcome: Outcome) -> str | None:
        """Put a job back whose worker is lost, a few times; the message on it, ``None`` where it is not put back."""
        if outcome.error is None or outcome.cause != "worker":
            return None
        self._attempts[job] += 1
        if self._attempts[job] == ATTEMPTS:
            return None
        self._retries.append(job)
        swept = _words(self._open[job.number].params) if job.number in self._open else ""
        return f"lost     {swept}: {outcome.error}; it is done again"

    def _finish(self, job: Job, outcome: Outcome) -> str:
        """Store the result of a trial; the message on it."""
        trial = self._open.pop(job.number)
        if self._attempts[job] == ATTEMPTS:  # whatever the cause is, it follows the trial
            outcome = Outcome((), f"{outcome.error}, {ATTEMPTS} times", outcome.seconds)
        result = trial_result(outcome, list(self.objectives), self.settings.limits)
        trial.set_user_attr(OUTCOME, result)
        self._tell(trial, result)
        self._count(result)
        swept, begin = _words(trial.params), f"[{self.done}/{self.total}]"
        metrics, error = result["metrics"], result["error"]
        if result["stopped"]:
            return f"{begin} stopped  {swept}: {error}"
        if error is not None:
            then = "; the same command does it again" if result["again"] else ""
            return f"{begin} FAILED  {swept}: {error} (all in {job.log}){then}"
        if max(result["over"], default=0) <= 0:
            self.screen.reached(trial.number, trial.params, [metrics[name] for name in self.objectives])
        figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in self.objectives)
        return f"{begin} {figures}  {swept}  {clock(outcome.seconds)}"

    def _tell(self, trial: Trial | int, result: TrialResult) -> None:
        """End a trial in the study."""
        if result["stopped"]:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif result["error"] is not None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, [result["metrics"][name] for name in self.objectives])

    def _count(self, result: TrialResult) -> None:
        self.done += 1
        self.stopped += result["stopped"]
        self.failures += result["error"] is not None and not result["stopped"]

    def _check_failures(self, job: Job) -> None:
        """End the sweep after more failures than are allowed.

        Raises:
            ValueError: There are more.
        """
        rule, allowed = ("fail_fast", 0) if self.settings.fail_fast else ("max_failures", self.settings.max_failures)
        if allowed is not None and self.failures > allowed:
            raise ValueError(
                f"the sweep ends after {self.failures} failed trials, of which {rule} allows {allowed}; the last is in "
                f"{job.log}, and what is finished is kept"
            )

    def _resume(self, grid: Iterable[Params]) -> None:
        """Count the finished trials and plan the missing ones, among them those that a dead controller left running."""
        trials = self.study.get_trials(deepcopy=False)
        stored = {trial.number: self._stored(trial) for trial in trials}
        repeated = {trial.user_attrs.get(REPEATS) for trial in trials if stored[trial.number]}
        finished: dict[Any, TrialResult] = {}
        for trial in trials:
            result = stored[trial.number]
            if trial.state == TrialState.RUNNING:
                self._close(trial, result)
            if result is None or trial.number in repeated:
                continue
            failed = result["error"] is not None and not result["stopped"]
            if result["again"] or (self.settings.retry_failed and failed):
                self._plan_again(trial)
                continue
            finished[combination(trial.params) if self.sampler.then is None else trial.number] = result
        for result in finished.values():
            self._count(result)
        self.sampler.plan.extend(params for params in grid if combination(params) not in finished)

    def _close(self, trial: FrozenTrial, result: TrialResult | None) -> None:
        """End a trial that a dead controller left running: by its stored result, or as failed and planned again."""
        if result is not None:
            self._tell(trial.number, result)
            return
        self.study.tell(trial.number, state=TrialState.FAIL)
        if trial.params.keys() == self.space.swept.keys() and REPEATS not in trial.user_attrs:
            self._plan_again(trial)

    def _plan_again(self, trial: FrozenTrial) -> None:
        """Have a combination proposed once more, where no grid does it, and note the trial in whose place it runs."""
        if self.sampler.then is not None:
            self.sampler.plan.append(dict(trial.params))
            self._repeats[combination(trial.params)].append(trial.number)

    def _stored(self, trial: FrozenTrial) -> TrialResult | None:
        return stored_result(trial, self.space.swept, list(self.objectives))


def _pool(make: MakePool, **settings: Any) -> Pool:
    """The workers.

    Raises:
        ValueError: The pool has no setting of some name.
    """
    try:
        return make(**settings)
    except TypeError as error:
        raise ValueError(f"hydra.sweeper.pool: {error}") from error


def _words(params: Mapping[str, Any]) -> str:
    """``prune.sparsity=0.5 quantize.bits=4``."""
    return " ".join(f"{key.removeprefix('pipeline.')}={value}" for key, value in params.items())
