"""Kills at any moment: a command that is repeated must leave what the straight run leaves."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import outcome
from benchmarks.faults.case import Court, copied, remove
from benchmarks.faults.child import HOME, Child
from benchmarks.faults.world import (
    CLEAN,
    OFTEN,
    PRUNE,
    REPORT,
    SPARE,
    STEPS,
    SWEEP,
    Command,
    stage,
    train,
)

FRESH_SWEEP = Command(
    SWEEP.module,
    tuple({"runs=swept": "runs=new"}.get(one, one) for one in SWEEP.arguments) + OFTEN,
    outcome.trained("new"),
    "new",
)
COMMANDS: dict[str, tuple[Command, float]] = {  # name -> command, share of the kills
    "train": (train("new", *PRUNE, SPARE, *stage("finetune", *STEPS), "name=k"), 0.5),
    "sweep": (FRESH_SWEEP, 0.2),
    "report": (REPORT, 0.15),
    "clean": (CLEAN, 0.15),
}
PER_SERIES = 4  # kills of one copy of the world before the command may end


@dataclass
class Series:
    """Some kills of one command in one copy of the world, then the command left alone.

    Args:
        command: The command.
        root: The copy.
        moments: Each a number of the change to the disk before which it dies, or seconds after which it is killed.
    """

    command: Command
    root: Path
    moments: list[int | float]
    killed: int = 0
    child: Child | None = None
    moment: int | float | None = None
    output: list[str] = field(default_factory=list)

    def poll(self, limits: dict[str, float]) -> bool:
        """Go on; true when the command has ended by itself."""
        if self.child is None:
            self.moment = self.moments.pop(0) if self.moments else None
            dies_at = self.moment if isinstance(self.moment, int) else None
            self.child = self.command.start(self.root, dies_at=dies_at)
        if isinstance(self.moment, float) and time.monotonic() - self.child.began > self.moment:
            self.child.kill()
        if (ended := self.child.poll(**limits)) is None:
            return False
        self.child = None
        if self.moment is not None and ended.status == -9 and ended.limit is None:
            self.killed += 1
            return False
        self.output.append(f"status {ended.status}, {ended.limit or 'in time'}: {ended.output[-300:]}")
        return not self.moments or ended.status != 0


def run(court: Court, *, count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Kill each command its share of ``count`` times; returns kills and differences by command."""
    chance = random.Random(seed)
    results: dict[str, dict[str, Any]] = {}
    for name, (command, share) in COMMANDS.items():
        root = copied(court.world, court.scratch / "straight")
        straight = command.start(root).wait(seconds=300.0)
        right = _left(command, root, straight.stdout)
        changes = int((root / "changes").read_text())
        remove(root)
        found: dict[str, Any] = {"kills": 0, "series": 0, "changes": changes, "seconds": straight.seconds}
        found["differences"] = []
        moments = _moments(chance, changes, straight.seconds)
        for series in _all(court, command, name, moments, round(count * share)):
            found["kills"] += series.killed
            found["series"] += 1
            left = _left(command, series.root, "")
            wrong = sorted(key for key in left.keys() | right.keys() if not _agree(left, right, key))
            if wrong:
                found["differences"].append({"wrong": wrong[:5], "count": len(wrong), "said": series.output[-1]})
                print(f"KILLED {name}: {len(wrong)} differ, {wrong[:2]}; {series.output[-1]!r}", flush=True)
            remove(series.root)
        results[name] = found
    return results


def _agree(one: outcome.Figures, other: outcome.Figures, key: str) -> bool:
    return key in one and key in other and outcome._same(one[key], other[key])


def _left(command: Command, root: Path, output: str) -> outcome.Figures:
    """The result, and names of the files that are left; a trial that was killed leaves a log of its own."""
    files = outcome.remaining(command.owned)(root / HOME, "")
    return command.result(root / HOME, output) | {f"file {name}": True for name in files if not name.endswith(".log")}


def _moments(chance: random.Random, changes: int, seconds: float) -> Iterator[int | float]:
    """Before each change to the disk in turn, and between them at random times."""
    while True:
        for change in range(1, changes + 1):
            yield change
            yield chance.uniform(0.0, seconds)


def _all(court: Court, command: Command, name: str, moments: Iterator[int | float], count: int) -> Iterator[Series]:
    """Series that have ended, some at a time, until there were ``count`` kills."""
    busy, number, done = list[Series](), 0, 0
    while done < count or busy:
        while len(busy) < court.workers and done + PER_SERIES * len(busy) < count:
            number += 1
            root = copied(court.world, court.scratch / f"{name}-{number}")
            busy.append(Series(command, root, [next(moments) for _ in range(min(PER_SERIES, count - done))]))
        time.sleep(0.002)
        for series in list(busy):
            if series.poll(court.limits):
                busy.remove(series)
                done += max(series.killed, 1)
                yield series


def table(results: dict[str, dict[str, Any]]) -> str:
    """Kills by command, as Markdown."""
    lines = [
        "| command | kills | repeated to the end | changes to the disk | differences |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, one in results.items():
        lines.append(f"| {name} | {one['kills']} | {one['series']} | {one['changes']} | {len(one['differences'])} |")
    kills = sum(one["kills"] for one in results.values())
    wrong = sum(len(one["differences"]) for one in results.values())
    lines.append(f"| all | {kills} | {sum(one['series'] for one in results.values())} | | {wrong} |")
    return "\n".join(lines)
