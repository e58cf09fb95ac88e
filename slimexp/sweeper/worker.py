"""What a worker does, in whichever process it lives: one trial after the other, each with a log and an outcome."""

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
_SAID = (  # by errors of no class of their own
    *(f"(os error {number})" for number in (errno.ENOSPC, errno.EDQUOT)),  # libraries in Rust
    "can't allocate memory",  # torch on a CPU
    "DataLoader worker (pid",  # killed, or ended unexpectedly
)


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        number: Of the trial.
        overrides: Its command lines, one per seed.
        log: Where its output goes.
        timeout: Seconds of work after which it is ended; ``None`` for no limit.
    """

    number: int
    overrides: tuple[tuple[str, ...], ...]
    log: Path
    timeout: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        metrics: One dict per seed; empty after a failure.
        error: Why it failed or was stopped, in a line; ``None`` after a success.
        seconds: Wall time in the worker.
        stopped: Whether a rule stopped it.
        cause: Of a failure: the trial itself; the worker, which is gone; or the machine, whose disk or memory is full.
    """

    metrics: tuple[dict[str, float], ...]
    error: str | None
    seconds: float
    stopped: bool = False
    cause: Cause = "trial"


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


def gone(job: Job, why: str, seconds: float) -> Outcome:
    """What became of a job whose worker is gone: its limit of time ended it, or something around it."""
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
    """End this process, whatever it is in, once a job has taken its time."""
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
    """End this process and all that it started, at once: what is finished is on disk."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)


def _cause(error: BaseException) -> Cause:
    """Whether a trial or the machine is to blame for an error, which may stand behind others."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        if isinstance(one, OSError) and one.errno in _MACHINES:
            return "machine"
        if _OUT_OF_MEMORY & {kind.__name__ for kind in type(one).__mro__} or any(text in str(one) for text in _SAID):
            return "machine"
        seen.append(one)
        one = one.__cause__ or one.__context__
    return "trial"


def _send_output_to(file: int) -> None:
    """What is printed, by libraries in C too, goes to the job's log."""
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
    """A worker that trains; what a pool is given."""
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
