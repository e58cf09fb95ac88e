"""Does a search find better models than a plain grid in the same time?

    python -m benchmarks.search --seeds 0 1 2 --budgets 3 4 6 8
    python -m benchmarks.search --runs runs/search --report

For every seed it searches with all of ``--budgets`` (MB on disk) in one command, and notes the wall time. Then a grid
of the same pipeline, the share of the parameters that stays (``+experiment=front_llama``) x the bits of all weights, is
trained in random order with the same steps, until that time is over: a training that has begun is finished. Both are
graded on the same rows of the test split, which chose nothing.

Reported are, for each seed, the hypervolume of bytes and quality beside dense of each side, and for each budget the
best model of each side that keeps it: quality beside dense, and the 95 % interval of the paired difference. Exit status
1 where the search is surely worse at a budget, finds no model for one where the grid does, or has the smaller
hypervolume on average. Both take the machine as it is, so run nothing beside it. ``--report`` trains nothing.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slimexp.analysis import front
from slimexp.analysis.comparison import Comparison
from slimexp.analysis.section import Section, load

SHARES = (0.25, 0.4, 0.6, 0.8)
BITS = (8, 4, 3)
SIDES = ("search", "grid")
TIMES = "seconds.json"


class Row(NamedTuple):
    """The best model of each side within a budget.

    Attributes:
        budget: MB on disk.
        quality: Side -> figure of quality beside dense; of a side without such a model absent.
        comparison: The search's less the grid's in the headline; ``None`` where one has none, or it cannot be known.
    """

    budget: float
    quality: dict[str, float]
    comparison: Comparison | None


def search_line(seed: int, budgets: Sequence[float], runs: Path, more: Sequence[str]) -> list[str]:
    """Command line of a search."""
    return [
        "+experiment=search_llama", f"budget.disk_mb=[{','.join(f'{budget:g}' for budget in budgets)}]",
        f"seed={seed}", f"runs={runs}", f"name=search-{seed}", "logger=none", *more,
    ]  # fmt: skip


def grid_lines(seed: int, runs: Path, more: Sequence[str]) -> list[list[str]]:
    """Command lines of the grid, in a random order of the seed's own; the same training as the search's."""
    pairs = list(itertools.product(SHARES, BITS))
    random.Random(seed).shuffle(pairs)
    training = [
        "pipeline.distill.steps=110", "pipeline.distill.batch_size=8",
        "pipeline.distill.lr_scheduler.num_warmup_steps=6", "measure.task.split=test", "measure.task.limit=300",
    ]  # fmt: skip
    return [
        [
            "+experiment=front_llama", *training, f"pipeline.prune_structured.budget.share={share}",
            f"pipeline.quantize.bits={bits}", f"seed={seed}", f"runs={runs}", f"name=grid-{seed}", "logger=none", *more,
        ]
        for share, bits in pairs
    ]  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Train both sides of every seed; the times of a search that is done are kept."""
    arguments.runs.mkdir(parents=True, exist_ok=True)
    times = arguments.runs / TIMES
    for seed in arguments.seeds:
        seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
        if str(seed) not in seconds:
            seconds[str(seed)] = _program(
                "search", search_line(seed, arguments.budgets, arguments.runs, arguments.more)
            )
            times.write_text(json.dumps(seconds))
        left, allowed = grid_lines(seed, arguments.runs, arguments.grid), seconds[str(seed)]
        spent = seconds.get(f"grid {seed}", 0.0)
        for line in left[int(seconds.get(f"trials {seed}", 0)) :]:
            if spent >= allowed:
                break
            spent += _program("train", line)
            seconds |= {f"grid {seed}": spent, f"trials {seed}": seconds.get(f"trials {seed}", 0) + 1}
            times.write_text(json.dumps(seconds))


def _program(module: str, line: Sequence[str]) -> float:
    """Run a command; returns its wall time in seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", f"slimexp.{module}", *line], check=True, env=dict(os.environ))
    return time.monotonic() - began


def of_side(section: Section, side: str, seed: int) -> list[int]:
    """Indices of the compressed points of a side and seed."""
    return [
        index
        for index, point in enumerate(section.points)
        if not point.dense and f"{side}-{seed}" in point.runs and seed in point.seeds
    ]


def rows(section: Section, seed: int, budgets: Sequence[float]) -> list[Row]:
    """The best models of both sides within each budget."""
    sign = 1 if section.direction == "min" else -1
    found = []
    for budget in budgets:
        best = {}
        for side in SIDES:
            fitting = [i for i in of_side(section, side, seed) if section.points[i].value("disk_mb") <= budget]
            if fitting:
                best[side] = min(fitting, key=lambda i: sign * section.points[i].value(section.headline))
        both = len(best) == len(SIDES)
        comparison = section.comparisons.compare(best["search"], best["grid"], section.headline) if both else None
        found.append(
            Row(budget, {side: section.points[i].value(section.quality) for side, i in best.items()}, comparison)
        )
    return found


def volumes(section: Section, seed: int) -> dict[str, float]:
    """Side -> hypervolume of bytes and quality beside dense."""
    points = {side: [section.points[i] for i in of_side(section, side, seed)] for side in SIDES}
    return {side: front.hypervolume(some, section.quality) or 0.0 for side, some in points.items()}


def missed(found: dict[int, list[Row]], sizes: dict[int, dict[str, float]]) -> list[str]:
    """What speaks against the search, in words."""
    faults = []
    for seed, one in found.items():
        for row in one:
            if row.comparison is not None and row.comparison.worse:
                faults.append(f"seed {seed}, {row.budget:g} MB: surely worse than the grid")
            if "grid" in row.quality and "search" not in row.quality:
                faults.append(f"seed {seed}, {row.budget:g} MB: no model")
    means = {side: statistics.fmean(volume[side] for volume in sizes.values()) for side in SIDES}
    if means["search"] < means["grid"]:
        faults.append(f"hypervolume {means['search']:.4f} < {means['grid']:.4f}")
    return faults


def table(section: Section, found: dict[int, list[Row]], sizes: dict[int, dict[str, float]]) -> str:
    """Markdown tables of budgets and hypervolumes."""
    lines = [
        f"| seed | MB | {section.quality}: search | grid | {section.headline}: search - grid |",
        "|---:|---:|---:|---:|---|",
    ]
    for seed, one in found.items():
        for row in one:
            cells = [f"{row.quality[side]:.4g}" if side in row.quality else "none" for side in SIDES]
            beside = row.comparison
            words = "" if beside is None else f"{beside.difference:+.3g} [{beside.low:+.3g}, {beside.high:+.3g}]"
            lines.append(f"| {seed} | {row.budget:g} | {cells[0]} | {cells[1]} | {words} |")
    lines += ["", "| seed | hypervolume: search | grid |", "|---:|---:|---:|"]
    lines += [f"| {seed} | {one['search']:.4f} | {one['grid']:.4f} |" for seed, one in sizes.items()]
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.search", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[3, 4, 6, 8], help="MB on disk")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("--report", action="store_true", help="of what is there, without training")
    parser.add_argument("--more", nargs="*", default=[], help="further overrides of the searches")
    parser.add_argument("--grid", nargs="*", default=[], help="further overrides of the grid's trainings")
    arguments: Any = parser.parse_args(given)
    if not arguments.report:
        run(arguments)
    graded = [s for s in load(arguments.runs) if any(of_side(s, side, arguments.seeds[0]) for side in SIDES)]
    section = max(graded, key=lambda s: sum(bool(of_side(s, side, arguments.seeds[0])) for side in SIDES))
    found = {seed: rows(section, seed, arguments.budgets) for seed in arguments.seeds}
    sizes = {seed: volumes(section, seed) for seed in arguments.seeds}
    print(table(section, found, sizes))
    faults = missed(found, sizes)
    print("\n".join(f"missed: {fault}" for fault in faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
