"""A case: a command on a copy of the world in which one thing is wrong; many of them, some at a time."""

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import outcome
from benchmarks.faults.child import HOME, Child
from benchmarks.faults.world import Command


def undamaged(home: Path) -> None:
    """What is wrong with an input alone."""


@dataclass(frozen=True)
class Case:
    """One thing that is wrong.

    Attributes:
        kind: Row of the table.
        name: What is wrong, in words.
        command: What is run.
        damage: Home folder -> damaged in place.
        differs: Whether other figures are right: the file means something else and not nothing.
    """

    kind: str
    name: str
    command: Command
    damage: Callable[[Path], object] = undamaged
    differs: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of a case, and what shows it."""

    case: Case
    outcome: str
    detail: str
    seconds: float


class Court:
    """Judges cases against the undamaged world.

    Args:
        world: The undamaged world.
        scratch: Where copies go.
        seconds: Limit on the time of a case.
        megabytes: Limit on the memory that one takes beyond the warm process.
        workers: Cases at a time.
    """

    def __init__(self, world: Path, scratch: Path, *, seconds: float, megabytes: float, workers: int) -> None:
        self.world = world
        self.scratch = scratch
        self.limits = {"seconds": seconds, "megabytes": megabytes}
        self.workers = workers
        self._right: dict[Command, tuple[outcome.Figures, str]] = {}

    def judge(self, cases: Sequence[Case]) -> Iterator[Verdict]:
        """Verdicts as they come."""
        waiting, busy = list(enumerate(cases)), list[_Trial]()
        while waiting or busy:
            while waiting and len(busy) < self.workers:
                number, case = waiting.pop(0)
                right = self.right(case.command)
                try:
                    busy.append(_Trial(case, copied(self.world, self.scratch / str(number)), right))
                except (OSError, ValueError, LookupError) as error:
                    raise RuntimeError(f"{case.kind}, {case.name}: cannot be prepared") from error
            time.sleep(0.005)
            for trial in list(busy):
                if (verdict := trial.poll(self.limits)) is not None:
                    busy.remove(trial)
                    remove(trial.root)
                    yield verdict

    def right(self, command: Command) -> tuple[outcome.Figures, str]:
        """What comes out of the undamaged world, and what is said; run once."""
        if command not in self._right:
            root = copied(self.world, self.scratch / "right")
            ended = command.start(root).wait(seconds=300.0, megabytes=8000.0)
            self._right[command] = command.result(root / HOME, ended.stdout), ended.output
            remove(root)
        return self._right[command]


class _Trial:
    def __init__(self, case: Case, root: Path, right: tuple[outcome.Figures, str]) -> None:
        self.case, self.root, self.right = case, root, right
        case.damage(root / HOME)
        self.before = outcome.snapshot(root, case.command.owned)
        self.child: Child = case.command.start(root)

    def poll(self, limits: dict[str, float]) -> Verdict | None:
        ended = self.child.poll(**limits)
        if ended is None:
            return None
        after = outcome.snapshot(self.root, self.case.command.owned)
        names = sorted(self.before.keys() | after.keys())
        changed = next((name for name in names if self.before.get(name) != after.get(name)), None)
        right, usual = self.right
        result = self.case.command.result(self.root / HOME, ended.stdout)
        found = outcome.judge(
            ended, self.root, changed=changed, result=result, right=right, usual=usual, differs=self.case.differs
        )
        return Verdict(self.case, *found, ended.seconds)


def copied(world: Path, root: Path) -> Path:
    remove(root)
    shutil.copytree(world, root, symlinks=True)
    return root


def remove(root: Path) -> None:
    """A case's folder, whatever rights a case took away."""
    for folder, _, _ in os.walk(root):
        with contextlib.suppress(OSError):
            os.chmod(folder, stat.S_IRWXU)
    shutil.rmtree(root, ignore_errors=True)
