"""Warm local processes that run trials: imports are paid once, and a trial that dies takes nothing with it."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        number: Of the trial.
        overrides: Its command lines, one per seed.
        log: Where its output goes.
    """

    number: int
    overrides: tuple[tuple[str, ...], ...]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        metrics: One dict per seed; empty after a failure.
        error: Why it failed, in a line; ``None`` after a success.
        seconds: Wall time in the worker.
    """

    metrics: tuple[dict[str, float], ...]
    error: str | None
    seconds: float


Run = Callable[[tuple[str, ...]], dict[str, float]]


class Prepare(Protocol):
    """Called once in a fresh worker; returns what runs one command line."""

    def __call__(self, threads: int) -> Run: ...


class Pool:
    """Workers that are started when they are needed, and again when one has died.

    Args:
        workers: Most processes at a time.
        threads: Of torch, in each.
        prepare: What a worker does first; must be importable.
    """

    def __init__(self, *, workers: int, threads: int, prepare: Prepare) -> None:
        self.workers = workers
        self.threads = threads
        self.prepare = prepare
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for worker in [*self._idle, *self._busy]:
            worker.stop(at_once=kind is not None)

    @property
    def free(self) -> int:
        """Jobs that could start now."""
        return self.workers - len(self._busy)

    @property
    def busy(self) -> int:
        """Jobs under way."""
        return len(self._busy)

    def submit(self, job: Job) -> None:
        """Start a job; there must be a free slot."""
        assert self.free
        while True:
            worker = self._idle.pop() if self._idle else _Worker(self.threads, self.prepare)
            if worker.give(job):
                self._busy.append(worker)
                return

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait until at least one job has ended; those that have."""
        ready = wait([worker.connection for worker in self._busy] + [worker.process.sentinel for worker in self._busy])
        for worker in [one for one in self._busy if one.connection in ready or one.process.sentinel in ready]:
            job, outcome, alive = worker.take()
            self._busy.remove(worker)
            if alive:
                self._idle.append(worker)
            yield job, outcome


class _Worker:
    def __init__(self, threads: int, prepare: Prepare) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, prepare), daemon=True)
        self.process.start()
        theirs.close()  # so that reading ends when the process does
        self.job: Job | None = None
        self.began = 0.0

    def give(self, job: Job) -> bool:
        """Hand over a job; false where the process has died since its last one."""
        self.job, self.began = job, time.monotonic()
        try:
            self.connection.send(job)
        except OSError:
            self.process.join()
            return False
        return True

    def take(self) -> tuple[Job, Outcome, bool]:
        """The job, what became of it, and whether the process is there for another."""
        assert self.job is not None
        try:
            return self.job, self.connection.recv(), True
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return self.job, Outcome((), f"the worker was {why}{hint}", time.monotonic() - self.began), False

    def stop(self, *, at_once: bool) -> None:
        if at_once:
            self.process.kill()
        self.connection.close()  # an idle worker ends by itself
        self.process.join()


def _serve(connection: Connection, threads: int, prepare: Prepare) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's, which ends its workers
    run = prepare(threads)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        outcome = _outcome(run, job)
        try:
            connection.send(outcome)
        except OSError:
            return  # the controller is gone; what is finished is on disk


def _outcome(run: Run, job: Job) -> Outcome:
    began = time.monotonic()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log:
        _send_output_to(log.fileno())
        try:
            metrics = tuple(run(overrides) for overrides in job.overrides)
            return Outcome(metrics, None, time.monotonic() - began)
        except Exception as error:
            traceback.print_exc()
            return Outcome((), _line(error), time.monotonic() - began)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _send_output_to(file: int) -> None:
    """What is printed, by libraries in C too, goes to the job's log."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in (1, 2):
        os.dup2(file, number)


def _line(error: BaseException) -> str:
    from slimexp.config import explain

    text = explain(error) or f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:400]


def train(threads: int) -> Run:
    """A worker that trains; what ``Pool`` is given."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    from slimexp.config import check, compose
    from slimexp.pipeline import Pipeline

    def run(overrides: tuple[str, ...]) -> dict[str, Any]:
        cfg = compose(overrides)
        check(cfg)
        return Pipeline(cfg, overrides=list(overrides)).run()

    return run
