"""The work of a worker, in whichever process it lives: one trial after the other, each with a log and an outcome."""

import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from slimexp.file import regular
from slimexp.record.stage import Stopped

Cause = Literal["trial", "worker", "machine"]

_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW  # for reading too: so a pipe says what it is
_TAIL = 200  # bytes at the end of a log, which hold its last line
_TOOK_LONGER = "took longer than hydra.sweeper.trial_timeout="
_MACHINES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE}
_OUT_OF_MEMORY = {"MemoryError", "OutOfMemoryError"}  # torch's, by name: it is not imported for it
_MESSAGES = (  # of errors without a class of their own
    *(f"(os error {number})" for number in (errno.ENOSPC, errno.EDQUOT)),  # libraries in Rust
    "can't allocate memory",  # torch on a CPU
    "DataLoader worker (pid",  # killed, or ended unexpectedly
)


@dataclass(frozen=True)
class Job:
    """One trial, for a worker.

    Attributes:
        number: Number of the trial.
        overrides: Command lines of the trial, one per seed.
        log: File that its output is appended to.
        timeout: Seconds of work after which it is ended; ``None`` for no limit.
    """

    number: int
    overrides: tuple[tuple[str, ...], ...]
    log: Path
    timeout: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        metrics: Metric -> value, once for each seed; empty after a failure.
        error: Reason for a failure or a stop, in a line; ``None`` after a success.
        seconds: Wall time in the worker.
        stopped: Whether a rule stopped the trial.
        cause: Cause of a failure: the trial itself; the worker, which is lost; or the machine, whose disk or memory is
            full.
    """

    metrics: tuple[dict[str, float], ...]
    error: str | None
    seconds: float
    stopped: bool = False
    cause: Cause = "trial"


Run = Callable[[tuple[str, ...]], dict[str, float]]


class Prepare(Protocol):
    """Called once in a fresh worker, with torch's number of threads; returns the function that runs a command line."""

    def __call__(self, threads: int) -> Run: ...


class Pool(Protocol):
    """Workers of a sweep, wherever they are: ``conf/hydra/sweeper/pool``.

    Whatever happens to a worker is the outcome of its job. A pool is entered before its first job; one that is left by
    an exception ends the jobs under way.
    """

    @property
    def free(self) -> int:
        """Number of jobs that could start now."""

    @property
    def busy(self) -> int:
        """Number of jobs under way."""

    def submit(self, job: Job) -> None:
        """Start a job; there must be a free slot."""

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait until at least one job has ended; yields those that have, with their outcomes."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class MakePool(Protocol):
    """Makes a pool, given its size and its work."""

    def __call__(self, *, workers: int, threads: int, prepare: Prepare) -> Pool: ...


def work(run: Run, job: Job) -> Outcome:
    """Run a job; whatever happens becomes its outcome."""
    began = time.monotonic()
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = regular.descriptor(job.log, _APPEND)
    except OSError as error:
        return Outcome((), f"its log cannot be written ({line(error)})", 0.0, cause=_cause(error))
    _send_output_to(log)
    os.close(log)
    try:
        with _limited(job):
            metrics = tuple(run(overrides) for overrides in job.overrides)
        return Outcome(metrics, None, time.monotonic() - began)
    except Stopped as verdict:
        print(verdict)
        return Outcome((), str(verdict), time.monotonic() - began, stopped=True)
    except Exception as error:
        traceback.print_exc()
        return Outcome((), line(error), time.monotonic() - began, cause=_cause(error))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def lost_outcome(job: Job, why: str, seconds: float) -> Outcome:
    """The outcome of a job whose worker is gone: ended by the time limit of the job, or lost for the reason ``why``."""
    try:
        with regular.opened(job.log) as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            last = log.read(_TAIL).decode(errors="replace").strip().rpartition("\n")[2]
    except OSError:
        last = ""
    if last.startswith(_TOOK_LONGER):
        return Outcome((), last, seconds)
    return Outcome((), why, seconds, cause="worker")


@contextmanager
def _limited(job: Job) -> Iterator[None]:
    """End this process, whatever it is doing, once a job has exceeded its time limit."""
    if job.timeout is None:
        yield
        return
    timer = threading.Timer(job.timeout, _expire, args=(job.timeout,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _expire(seconds: float) -> None:
    os.write(1, f"\n{_TOOK_LONGER}{seconds:g}\n".encode())  # the log, past whatever holds Python's streams
    end_with_children()


def end_with_children() -> None:
    """End this process and its descendants at once: what is finished is on disk."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)


def _cause(error: BaseException) -> Cause:
    """Whether an error comes from the trial or from the machine; its causes and contexts are looked at too."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        if isinstance(link, OSError) and link.errno in _MACHINES:
            return "machine"
        kinds = {kind.__name__ for kind in type(link).__mro__}
        if _OUT_OF_MEMORY & kinds or any(message in str(link) for message in _MESSAGES):
            return "machine"
        seen.append(link)
        link = link.__cause__ or link.__context__
    return "trial"


def _send_output_to(file: int) -> None:
    """Send what is printed, by libraries in C too, to the job's log."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in (1, 2):
        os.dup2(file, number)


def line(error: BaseException) -> str:
    """An error as one line of an outcome."""
    from slimexp.config.explanation import explain

    text = explain(error) or f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:400]


def train(threads: int) -> Run:
    """Prepare a worker that trains, as every sweep of a command line does."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    from slimexp.config.check import check
    from slimexp.config.composition import compose
    from slimexp.pipeline.pipeline import Pipeline

    def run(overrides: tuple[str, ...]) -> dict[str, Any]:
        cfg = compose(overrides)
        check(cfg)
        return Pipeline(cfg, overrides=list(overrides)).run()

    return run
