"""Every trial a job of its own, through submitit: on Slurm, or on this machine to rehearse it."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from slimexp.host.extra import require
from slimexp.sweeper.worker import Job, Outcome, Prepare, line, lost_outcome, work

POLL_S = 0.2  # seconds between two looks at the jobs' result files
LATE_S = 15.0  # seconds that a shared filesystem may take to show one


class Pool:
    """Jobs that are submitted as slots get free. A job is a fresh process: it pays for its imports.

    Args:
        workers: Largest number of jobs at a time, waiting ones included.
        threads: Threads of torch in each job, and CPUs that it requests.
        prepare: Prepares a job's process; must be importable on every node.
        cluster: ``slurm``, or ``local``. The sweep's folder must be one that all nodes share.
        parameters: Parameters of submitit's ``AutoExecutor``: ``timeout_min``, ``mem_gb``, ``slurm_partition`` ...

    Raises:
        ValueError: submitit is not installed, or a setting is of another kind.
    """

    def __init__(
        self, *, workers: int, threads: int, prepare: Prepare, cluster: str, parameters: Mapping[str, Any]
    ) -> None:
        if not isinstance(cluster, str) or not cluster:
            raise ValueError(f"hydra.sweeper.pool.cluster must be slurm or local, got {cluster!r}")
        if not isinstance(parameters, Mapping):
            raise ValueError(f"hydra.sweeper.pool.parameters must be settings by name, got {parameters!r}")
        self.workers = workers
        self.threads = threads
        self.prepare = prepare
        self.cluster = cluster
        self.parameters = dict(parameters)
        self._executor: Any = None
        self._busy: list[tuple[Job, Any, float]] = []  # with submitit's job and its start
        self._gone: dict[str, float] = {}  # jobs that are gone without a result, and when that was seen
        self._submitit = require("submitit", extra="submitit", by="hydra/sweeper/pool=submitit")

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, submitted, _ in self._busy:
            submitted.cancel(check=False)

    @property
    def free(self) -> int:
        """Number of jobs that could be submitted now."""
        return self.workers - len(self._busy)

    @property
    def busy(self) -> int:
        """Number of jobs submitted."""
        return len(self._busy)

    def submit(self, job: Job) -> None:
        """Submit a job; there must be a free slot.

        Raises:
            ValueError: There is no such cluster here, or it has no such parameter.
        """
        assert self.free
        if self._executor is None:
            self._executor = self._make_executor(job.log.parent / "submitit")
        submitted = self._executor.submit(_Trial(self.prepare, self.threads, Path.cwd()), job)
        self._busy.append((job, submitted, time.monotonic()))

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait until at least one job has ended; yields those that have, with their outcomes."""
        while not (ended := [busy for busy in self._busy if self._ended(busy[1])]):
            time.sleep(POLL_S)
        for job, submitted, began in ended:
            self._busy.remove((job, submitted, began))
            yield job, _outcome(job, submitted, time.monotonic() - began)

    def _ended(self, submitted: Any) -> bool:
        """Whether a job has left a result, or is gone without one; submitit itself would wait long for a dead one's."""
        if submitted.paths.result_pickle.exists():
            return bool(submitted.done())
        if not submitted.done():
            return False
        since = self._gone.setdefault(submitted.job_id, time.monotonic())
        return self.cluster == "local" or time.monotonic() - since > LATE_S

    def _make_executor(self, folder: Path) -> Any:
        try:
            executor = self._submitit.AutoExecutor(folder=folder, cluster=self.cluster)
            executor.update_parameters(name="slimexp", cpus_per_task=self.threads, **self.parameters)
        except (ValueError, NameError, RuntimeError, AssertionError) as error:
            raise ValueError(f"hydra.sweeper.pool: {error}") from error
        return executor


@dataclass(frozen=True)
class _Trial:
    """The function of a job; it has ``checkpoint``, so that Slurm may take its node away and give it another."""

    prepare: Prepare
    threads: int
    folder: Path

    def __call__(self, job: Job) -> Outcome:
        os.chdir(self.folder)
        return work(self.prepare(self.threads), job)

    def checkpoint(self, job: Job) -> Any:
        """The same job again: finished stages stay, and one under way goes on from its checkpoint."""
        helpers = require("submitit.helpers", extra="submitit", by="hydra/sweeper/pool=submitit")
        return helpers.DelayedSubmission(self, job)


def _outcome(job: Job, submitted: Any, seconds: float) -> Outcome:
    if not submitted.paths.result_pickle.exists():
        state = submitted.state.lower()
        return lost_outcome(job, f"the job is gone ({state}; out of memory?): see {submitted.paths.stderr}", seconds)
    try:
        return cast(Outcome, submitted.result())
    except Exception as error:
        why = f"{line(error)[:200]} (see {submitted.paths.stderr})"
        return Outcome((), why, seconds, cause="worker")
