"""What a worker does, in whichever process it lives: one trial after the other, each with a log and an outcome."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from slimexp.stage import Stopped


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
        error: Why it failed or was stopped, in a line; ``None`` after a success.
        seconds: Wall time in the worker.
        stopped: Whether a rule stopped it.
    """

    metrics: tuple[dict[str, float], ...]
    error: str | None
    seconds: float
    stopped: bool = False


Run = Callable[[tuple[str, ...]], dict[str, float]]


class Prepare(Protocol):
    """Called once in a fresh worker; returns what runs one command line."""

    def __call__(self, threads: int) -> Run: ...


class Pool(Protocol):
    """Where the workers are: ``conf/hydra/sweeper/pool``.

    Whatever happens to a worker is the outcome of its job. A pool is entered before its first job; one that is left by
    an exception ends the jobs under way.
    """

    @property
    def free(self) -> int:
        """Jobs that could start now."""

    @property
    def busy(self) -> int:
        """Jobs under way."""

    def submit(self, job: Job) -> None:
        """Start a job; there must be a free slot."""

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait until at least one job has ended; those that have."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class MakePool(Protocol):
    """A pool with all but its size and its work chosen."""

    def __call__(self, *, workers: int, threads: int, prepare: Prepare) -> Pool: ...


def work(run: Run, job: Job) -> Outcome:
    """Do a job, whatever becomes of it."""
    began = time.monotonic()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log:
        _send_output_to(log.fileno())
        try:
            metrics = tuple(run(overrides) for overrides in job.overrides)
            return Outcome(metrics, None, time.monotonic() - began)
        except Stopped as verdict:
            print(verdict)
            return Outcome((), str(verdict), time.monotonic() - began, stopped=True)
        except Exception as error:
            traceback.print_exc()
            return Outcome((), line(error), time.monotonic() - began)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _send_output_to(file: int) -> None:
    """What is printed, by libraries in C too, goes to the job's log."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in (1, 2):
        os.dup2(file, number)


def line(error: BaseException) -> str:
    """An error as one line of an outcome."""
    from slimexp.command_line import explain

    text = explain(error) or f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:400]


def train(threads: int) -> Run:
    """A worker that trains; what a pool is given."""
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
