"""Warm processes of this machine: imports are paid once, and a trial that dies takes nothing with it."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType

from tqdm import tqdm

from slimexp.host import gpu
from slimexp.sweeper.worker import Job, Outcome, Prepare, end_with_children, lost_outcome, work

MOST = 1000  # processes on one machine
AUTO = "auto"


class Pool:
    """Workers that are started when they are needed, and again when one has died.

    Args:
        workers: Largest number of processes at a time.
        threads: Threads of torch in each process.
        prepare: Prepares a worker before its first job; must be importable.
        gpus: Number of GPUs that each worker sees, shared with others where there are fewer than all need; ``auto``
            for one where the machine has any, ``None`` for all.

    Raises:
        ValueError: More workers than a machine can hold, or more GPUs for one than there are.
    """

    def __init__(self, *, workers: int, threads: int, prepare: Prepare, gpus: int | str | None = AUTO) -> None:
        if workers > MOST:
            raise ValueError(f"hydra.sweeper.workers must be at most {MOST} on one machine, got {workers}")
        if gpus not in (AUTO, None) and (not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 1):
            raise ValueError(f"hydra.sweeper.pool.gpus must be >= 1, auto, or null for all, got {gpus!r}")
        self._there = gpu.gpus()
        if isinstance(gpus, int) and gpus > len(self._there):
            raise ValueError(f"hydra.sweeper.pool.gpus={gpus} for each worker: this machine has {len(self._there)}")
        self._each = gpus if isinstance(gpus, int) else min(1, len(self._there)) if gpus == AUTO else 0
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
        """Number of jobs that could start now."""
        return self.workers - len(self._busy)

    @property
    def busy(self) -> int:
        """Number of jobs under way."""
        return len(self._busy)

    def submit(self, job: Job) -> None:
        """Start a job; there must be a free slot."""
        assert self.free
        while True:
            worker = self._idle.pop() if self._idle else _Worker(self.threads, self.prepare, self._free_gpus())
            if worker.give(job):
                self._busy.append(worker)
                return

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait until at least one job has ended; yields those that have, with their outcomes."""
        ready = wait([worker.connection for worker in self._busy] + [worker.process.sentinel for worker in self._busy])
        for worker in [busy for busy in self._busy if busy.connection in ready or busy.process.sentinel in ready]:
            job, outcome, alive = worker.take()
            self._busy.remove(worker)
            if alive:
                self._idle.append(worker)
            yield job, outcome

    def _free_gpus(self) -> tuple[str, ...]:
        """GPUs for a new worker: those that fewest others see."""
        used = [name for worker in (*self._busy, *self._idle) for name in worker.gpus]
        return gpu.least_used(self._there, used, self._each)


class _Worker:
    """A process, leader of a group of its own, so that whoever ends it ends what it started too."""

    def __init__(self, threads: int, prepare: Prepare, gpus: tuple[str, ...] = ()) -> None:
        self.gpus = gpus
        context = multiprocessing.get_context("spawn")
        self.connection, remote = context.Pipe()
        alive, self._alive = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(remote, alive, threads, prepare, gpus))
        self.process.start()
        for end in (remote, alive):
            end.close()  # so that reading ends when the process does
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
        """The job, its outcome, and whether the process can take another job."""
        assert self.job is not None
        try:
            return self.job, self.connection.recv(), True
        except (EOFError, OSError):
            self._end()
            why = f"the worker {_ending(self.process.exitcode or 0)}"
            return self.job, lost_outcome(self.job, why, time.monotonic() - self.began), False

    def stop(self, *, at_once: bool) -> None:
        if at_once:
            self.process.kill()
            self._end()
        self.connection.close()  # an idle worker ends by itself
        self.process.join()
        self._alive.close()

    def _end(self) -> None:
        """Wait for a process that is dead or dying, and end what it has started."""
        self.process.join()
        assert self.process.pid
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _ending(code: int) -> str:
    """How a process ended, by its exit code as ``multiprocessing`` reports it."""
    if code >= 0:
        return f"ended with status {code}"
    names = {number.value: number.name for number in signal.Signals}
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {names.get(-code, f'signal {-code}')}{hint}"


def _serve(
    connection: Connection, controller: Connection, threads: int, prepare: Prepare, gpus: tuple[str, ...]
) -> None:
    """The loop of a worker: receive a job, run it, send its outcome."""
    if gpus:
        os.environ[gpu.VISIBLE] = ",".join(gpus)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's, which ends its workers
    threading.Thread(target=_end_with_controller, args=(controller,), daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed worker leaves behind
    run = prepare(threads)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        outcome = work(run, job)
        try:
            connection.send(outcome)
        except OSError:
            return  # the controller is gone; what is finished is on disk


def _end_with_controller(controller: Connection) -> None:
    """End with the controller, in the midst of a job too: it never writes to this pipe, and its end closes it."""
    with suppress(EOFError, OSError):
        controller.recv_bytes()
    end_with_children()
