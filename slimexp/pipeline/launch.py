"""Starts one process per device, all of which run the same pipeline; the first is the one that was started by hand."""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import IO, Any

import torch
from omegaconf import DictConfig
from torch.distributed import TCPStore

from slimexp.host import process_group
from slimexp.host.console import USER_ERROR, printable
from slimexp.pipeline import devices

GRACE_S = 10.0  # for this process to say itself what is wrong, after another has ended
LEAVING_S = 60.0  # for all the others to end by themselves after the last stage
POLL_S = 0.2
FOLLOWER = (sys.executable, "-m", "slimexp.pipeline.follower")
_OWN = "SLIMEXP_STARTED"  # set in processes that this module started
_TAIL = 4000  # bytes at the end of what a process has said


@contextmanager
def processes(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[None]:
    """One process per device within the context, of which this is one, and its GPU the current one.

    ``torchrun`` and Slurm start all processes alike, and they only have to meet. Otherwise this process is the first of
    its machine and starts the others, which end with it.

    Args:
        cfg: The run's configuration.
        overrides: The overrides of the command line, for the others.

    Raises:
        ValueError: Another process failed; the message is its own.
    """
    if process_group.size() > 1:
        yield
        return
    if devices.total(cfg.trainer) == 1:
        with torch.cuda.device(devices.index(cfg.trainer)) if devices.is_cuda(cfg.trainer) else nullcontext():
            yield
        return
    started = devices.external()
    with _surroundings(started or _counted(cfg.trainer)):
        try:
            if started is None:
                with _Others(cfg, overrides) as store, _joined(cfg.trainer, store):
                    yield
            else:
                with _joined(cfg.trainer, meeting() if _OWN in os.environ else None):
                    yield
        except process_group.OtherProcessFailed:
            sys.exit(1)  # the first says why


def silence_others() -> None:
    """Have a process print nothing from now on where ``torchrun`` or Slurm started it beside a first one."""
    started = devices.external()
    if started is not None and started["RANK"] != "0":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def _joined(node: DictConfig, store: TCPStore | None) -> Iterator[None]:
    """The processes as a group; all but the first print nothing."""
    cuda, threads = devices.is_cuda(node), torch.get_num_threads()
    if cuda:
        torch.cuda.set_device(devices.index(node))
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, threads // devices.per_node(node)))
    silent = redirect_stdout(open(os.devnull, "w")) if os.environ["RANK"] != "0" else nullcontext()  # noqa: SIM115
    try:
        with process_group.joined("nccl" if cuda else "gloo", store), silent:
            yield
    finally:
        torch.set_num_threads(threads)


class _Others:
    """The other processes of this machine; entered, they are started, and their store is there to meet at."""

    def __init__(self, cfg: DictConfig, overrides: Sequence[str]) -> None:
        self.cfg = cfg
        self.overrides = list(overrides)
        self._processes: list[_Process] = []
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TCPStore:
        store = meeting()
        os.environ["MASTER_PORT"] = str(store.port)
        first = int(os.environ["RANK"])
        for local in range(1, devices.per_node(self.cfg.trainer)):
            self._processes.append(_Process(first + local, local, (self.cfg, self.overrides)))
        self._watching.start()
        return store

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._over.set()
        self._watching.join()
        until = time.monotonic() + LEAVING_S
        for process in self._processes if kind is None else ():
            process.wait(until - time.monotonic())
        failure = self._failure(wait=error is not None and not isinstance(error, ValueError | KeyboardInterrupt))
        for process in self._processes:
            process.kill()
        if failure is not None and not isinstance(error, ValueError | KeyboardInterrupt | SystemExit):
            raise ValueError(failure) from error

    def _watch(self) -> None:
        """End the program when another process has failed and this one, which waits for it, cannot say so."""
        while not self._over.wait(POLL_S):
            if (failure := self._failure()) and not self._over.wait(GRACE_S):
                print(f"error: {printable(failure, None)}", file=sys.stderr, flush=True)
                os._exit(USER_ERROR)

    def _failure(self, *, wait: bool = False) -> str | None:
        """How the first of the others to fail says that it failed, if one has."""
        until = time.monotonic() + (2.0 if wait else 0.0)
        while True:
            for process in self._processes:
                if message := process.failure():
                    return message
            if time.monotonic() >= until:
                return None
            time.sleep(POLL_S)


class _Process:
    """Another process, which reads what it has to do and ends when its input does."""

    def __init__(self, rank: int, local: int, work: Any) -> None:
        self.rank = rank
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        own = {"RANK": str(rank), "LOCAL_RANK": str(local), _OWN: "1", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            FOLLOWER,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            env={**os.environ, **own},
        )
        assert self._process.stdin is not None
        pickle.dump(work, self._process.stdin)
        self._process.stdin.flush()  # and stays open: its end is the other's

    def failure(self) -> str | None:
        """The last line that it said before it failed, if it did."""
        status = self._process.poll()
        if not status:
            return None
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _TAIL))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        why = f"it was killed by signal {-status} (out of memory?)" if status < 0 else ""
        return f"process {self.rank} of the training failed: {why or (lines or ['no reason given'])[-1]}"

    def wait(self, seconds: float) -> None:
        """Wait for its end, or no longer than ``seconds``."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._said.close()


def _counted(node: DictConfig) -> dict[str, str]:
    """Environment of the first process of this machine, in the words of ``torchrun``."""
    count = devices.per_node(node)
    is_only = devices.total(node) == count  # whatever the environment says of other machines
    machine = 0 if is_only else int(os.environ["NODE_RANK"])
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"} if is_only else {}
    return {
        "RANK": str(machine * count),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(devices.total(node)),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": str(machine),
        "TORCHELASTIC_RUN_ID": "slimexp",  # by which Lightning sees that it has to start nothing
        **here,
    }


def meeting() -> TCPStore:
    """Where the processes meet; that of the first one."""
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        is_master=os.environ["RANK"] == "0",
        wait_for_workers=False,
        timeout=process_group.CONNECTING,
    )


@contextmanager
def _surroundings(variables: dict[str, str]) -> Iterator[None]:
    """Variables of the environment within the context."""
    before = {name: os.environ.get(name) for name in (*variables, "MASTER_PORT")}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
