"""Warm actors on a Ray cluster: this machine's cores as one, or all machines of a real one."""

import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from slimexp.host.extra import require
from slimexp.sweeper.worker import Job, Outcome, Prepare, Run, lost_outcome, work

LOCAL = "local"
ANSWER_S = 5.0


class Pool:
    """Actors that are started when they are needed, and again when one has died.

    Args:
        workers: Largest number of actors at a time.
        threads: Threads of torch in each actor, and CPUs that Ray reserves for it.
        prepare: Prepares an actor before its first job; must be importable on every node.
        address: ``local`` for a cluster of this process alone, ``auto`` for the one that this machine belongs to, or
            ``HOST:PORT``. All nodes must see this machine's working directory under the same path.
        gpus: Number of GPUs of each actor; a fraction lets several share one.

    Raises:
        ValueError: Ray is not installed, or a setting is of another kind.
    """

    def __init__(self, *, workers: int, threads: int, prepare: Prepare, address: str, gpus: float) -> None:
        if not isinstance(address, str) or not address:
            raise ValueError(f"hydra.sweeper.pool.address must be local, auto or HOST:PORT, got {address!r}")
        if not isinstance(gpus, int | float) or isinstance(gpus, bool) or not 0 <= gpus < math.inf:
            raise ValueError(f"hydra.sweeper.pool.gpus must be a number >= 0, got {gpus!r}")
        self.workers = workers
        self.threads = threads
        self.prepare = prepare
        self.address = address
        self.gpus = gpus
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Job, Any, float]] = {}  # what Ray will answer -> job, actor, start
        self._ray = require("ray", extra="ray", by="hydra/sweeper/pool=ray")

    def __enter__(self) -> "Pool":
        """Start or join the cluster.

        Raises:
            ValueError: No cluster answers, or the local one could not hold a worker.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what becomes the default, without a warning
        alone = {"num_cpus": self.workers * self.threads, "include_dashboard": False} if self.address == LOCAL else {}
        try:
            _knock(self.address)
            self._ray.init(address=self.address, log_to_driver=False, logging_level=logging.CRITICAL, **alone)
        except (OSError, ValueError, RuntimeError, self._ray.exceptions.RayError) as error:
            raise ValueError(
                f"hydra.sweeper.pool.address: no Ray cluster answers at '{self.address}' ({_first_line(error)}): start "
                "one by 'ray start --head', or let address=local"
            ) from error
        gpus = self._ray.cluster_resources().get("GPU", 0)
        if self.address == LOCAL and self.gpus > gpus:
            self._ray.shutdown()
            raise ValueError(f"hydra.sweeper.pool.gpus asks for {self.gpus:g} per worker, this machine has {gpus:g}")
        self._actor = self._ray.remote(_Worker).options(num_cpus=self.threads, num_gpus=self.gpus)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()  # ends the actors of this process too

    @property
    def free(self) -> int:
        """Number of jobs that could start now."""
        return self.workers - len(self._busy)

    @property
    def busy(self) -> int:
        """Number of jobs under way, or waiting for a node to have room."""
        return len(self._busy)

    def submit(self, job: Job) -> None:
        """Start a job; there must be a free slot."""
        assert self.free
        actor = self._idle.pop() if self._idle else self._actor.remote(self.threads, self.prepare, Path.cwd())
        self._busy[actor.work.remote(job)] = job, actor, time.monotonic()

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait until at least one job has ended; yields those that have, with their outcomes."""
        self._release_idle()
        self._ray.wait(list(self._busy), num_returns=1)
        ended, _ = self._ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
        for answer in ended:
            job, actor, began = self._busy.pop(answer)
            try:
                outcome = self._ray.get(answer)
                self._idle.append(actor)
            except self._ray.exceptions.RayError as error:
                self._ray.kill(actor)
                outcome = lost_outcome(job, _reason(error), time.monotonic() - began)
            yield job, outcome

    def _release_idle(self) -> None:
        """End idle actors: on a cluster with fewer CPUs than workers, others wait for their places."""
        while self._idle:
            self._ray.kill(self._idle.pop())


class _Worker:
    """An actor: prepared by its first job, it runs one after the other."""

    def __init__(self, threads: int, prepare: Prepare, folder: Path) -> None:
        self.threads = threads
        self.prepare = prepare
        self.folder = folder
        self.run: Run | None = None

    def work(self, job: Job) -> Outcome:
        if self.run is None:
            if not self.folder.is_dir():
                why = f"{socket.gethostname()} has no {self.folder}: a cluster must share that folder"
                return Outcome((), why, 0.0, cause="machine")
            os.chdir(self.folder)  # what the controller calls runs/ is runs/ here too
            self.run = self.prepare(self.threads)
        return work(self.run, job)


def _reason(error: Exception) -> str:
    """Ray's reason for the loss of a job, without its advice."""
    text = " ".join(str(error).split())
    _, _, detail = text.partition("Worker exit detail: ")
    return f"the Ray worker is gone (out of memory?): {(detail or text).partition(' Some common causes')[0]}"[:400]


def _knock(address: str) -> None:
    """Raise ``OSError`` where nothing listens: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
