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

from slimexp.sweeper.worker import Job, Outcome, Prepare, end_with_children, lost_outcome, work

MOST = 1000  # processes on one machine


class Pool:
    """Workers that are started when they are needed, and again when one has died.

    Args:
        workers: Largest number of processes at a time.
        threads: Threads of torch in each process.
        prepare: Prepares a worker before its first job; must be importable.

    Raises:
        ValueError: More workers than a machine can hold.
    """

    def __init__(self, *, workers: int, threads: int, prepare: Prepare) -> None:
        if workers > MOST:
            raise ValueError(f"hydra.sweeper.workers must be at most {MOST} on one machine, got {workers}")
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
            worker = self._idle.pop() if self._idle else _Worker(self.threads, self.prepare)
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


class _Worker:
    """A process, leader of a group of its own, so that whoever ends it ends what it started too."""

    def __init__(self, threads: int, prepare: Prepare) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, remote = context.Pipe()
        alive, self._alive = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(remote, alive, threads, prepare))
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


def _serve(connection: Connection, controller: Connection, threads: int, prepare: Prepare) -> None:
    """The loop of a worker: receive a job, run it, send its outcome."""
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
