"""A command of slimexp in a forked child of a warm process, with a limit on its time and memory."""

import gc
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

HOME = "home"  # the working directory of every command, below a case's root
WARM = (
    "torch",
    "transformers",
    "pytorch_lightning",
    "optuna",
    "matplotlib.pyplot",
    "pandas",
    "slimexp.artifact",
    "slimexp.pipeline.pipeline",
    "slimexp.evaluate",
    "slimexp.train",
    "slimexp.report",
    "slimexp.select",
    "slimexp.clean",
    "slimexp.logger.wandb_report",
    "slimexp.sweeper.command",
    "hydra_plugins.slimexp_pareto",
    "transformers.models.llama.modeling_llama",
)
_QUIET = {
    "WANDB_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
}
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}  # audit events that change a disk


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Exit status, or minus the signal that ended it.
        limit: ``endless`` or ``huge`` where it was killed for that.
        stdout: What it printed.
        stderr: The same of errors and warnings.
        seconds: How long it took.
    """

    status: int
    limit: str | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def output(self) -> str:
        return self.stdout + "\n" + self.stderr


def warm() -> None:
    """Import everything once, without starting a thread that a fork would lose; and a server that sweeps fork from."""
    os.environ.update(_QUIET)
    multiprocessing.set_forkserver_preload(list(WARM))
    os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning"  # of runpy, of a module that is warm
    multiprocessing.forkserver.ensure_running()
    del os.environ["PYTHONWARNINGS"]
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


class Child:
    """A command under way.

    Args:
        work: What it does; its return value is ignored, ``SystemExit`` gives the status.
        root: The case's folder; ``home`` below it becomes the working directory.
        dies_at: Number of the change to the disk before which it kills itself; ``None`` for never.
    """

    def __init__(self, work: Callable[[], Any], root: Path, *, dies_at: int | None = None) -> None:
        self.root = root
        self.began = time.monotonic()
        self.limit: str | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _live(work, root, dies_at)
        self._resident = _resident(self.pid)

    def poll(self, *, seconds: float, megabytes: float) -> Ended | None:
        """What became of it; ``None`` while it works within its limits."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            if time.monotonic() - self.began > seconds:
                self.limit = "endless"
            elif _resident(self.pid) - self._resident > megabytes:
                self.limit = "huge"
            if self.limit is None:
                return None
            self.kill()
            _, status = os.waitpid(self.pid, 0)
        out, err = ((self.root / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, self.limit, out, err, time.monotonic() - self.began)

    def kill(self) -> None:
        """End it and what it started, at once."""
        for end in (os.killpg, os.kill):
            try:
                end(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def wait(self, *, seconds: float = 60.0, megabytes: float = 2000.0) -> Ended:
        while (ended := self.poll(seconds=seconds, megabytes=megabytes)) is None:
            time.sleep(0.005)
        return ended


def program(module: str, arguments: tuple[str, ...]) -> Callable[[], Any]:
    """``python -m module arguments``, as work for a ``Child``."""

    def work() -> None:
        sys.argv = [module, *arguments]
        warnings.filterwarnings("ignore", message=".*found in sys.modules after import", module="runpy")
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return work


def _live(work: Callable[[], Any], root: Path, dies_at: int | None) -> NoReturn:
    """The child's life; never returns to the parent's code."""
    status = 70
    try:
        _settle(root)
        count = _count_changes(root, dies_at)
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            status = 1
        (root / "changes").write_text(str(count[0]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _settle(root: Path) -> None:
    os.setsid()
    os.chdir(root / HOME)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, os.fdopen(number, "w" if number else "r", buffering=1, encoding="utf-8"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(_QUIET, SLIMEXP_CACHE=str(root / "cache"), XDG_CACHE_HOME=str(root / "cache"))
    sys.path.insert(0, str(root / HOME))  # as python -m has it
    server = multiprocessing.get_context("forkserver")
    multiprocessing.get_context = lambda method=None: server  # type: ignore[assignment]
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]


def _count_changes(root: Path, dies_at: int | None) -> list[int]:
    """Count what changes the disk, and die before the change that is asked for."""
    count = [0]
    outside = ("/dev", "/proc", "/sys")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes | os.PathLike) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if os.fsdecode(path).startswith(outside) or os.fsdecode(path) == str(root / "changes"):
                return
        elif event not in _CHANGES:
            return
        count[0] += 1
        if count[0] == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def _resident(pid: int) -> float:
    """Megabytes of a process in memory; 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / 1e6
