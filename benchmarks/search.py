"""Does a search find better models than a plain grid in the same time?

    python -m benchmarks.search --seeds 0 1 2 --budgets 3 4 6 8
    python -m benchmarks.search --runs runs/search --report
    python -m benchmarks.search --toy

For every seed it searches with all of ``--budgets`` (MB on disk) in one command, and notes the wall time. Then a grid
of the same pipeline, the share of the parameters that stays (``+experiment=front_llama``) x the bits of all weights, is
trained in random order with the same steps, and as many trainings at a time, until that time is over: a training that
has begun is finished. Both are graded on the same rows of the test split, which chose nothing.

With ``--seconds`` both have a time that is known before, and sides and seeds can be run beside each other, each on
cores of its own:

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.search --seconds 900 --seeds 0 --sides search &
    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.search --seconds 900 --seeds 0 --sides grid; wait
    python -m benchmarks.search --seconds 900 --seeds 0 --report

Reported are, for each seed, the hypervolume of bytes and quality beside dense of each side, and for each budget the
best model of each side that keeps it: quality beside dense, and the 95 % interval of the paired difference. Exit status
1 where the search is surely worse at a budget, finds no model for one where the grid does, has the smaller
hypervolume on average, or takes longer than ``--seconds``. Both take their cores as they are, so run nothing beside
them there. ``--report`` trains nothing; ``--toy`` shows in a minute that all of it runs.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from slimexp.analysis import front
from slimexp.analysis.comparison import Comparison
from slimexp.analysis.section import Section, load
from slimexp.config.composition import compose
from slimexp.sweeper.pool.local import Pool
from slimexp.sweeper.worker import Job, train

SHARES = (0.25, 0.4, 0.6, 0.8)
BITS = (8, 4, 3)
SIDES = ("search", "grid")
TOY = ["pipeline.distill.steps=2", "pipeline.distill.batch_size=2", "pipeline.distill.lr_scheduler.num_warmup_steps=1",
       "measure.task.limit=8"]  # fmt: skip
TOY_GRID = ["pipeline.prune_structured.rows=1", "pipeline.prune_structured.importance.rows=1"]
TOY_SEARCH = [
    "search.rows=1", "search.graded=2", "search.heads=[]", "search.hidden=[]", "search.ffn=[0.5]", "search.bits=[4,3]",
    "search.solutions=2", "search.steps=1", "search.trials=1", "pipeline.cut.cut.calibration_batches=0",
]  # fmt: skip


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
    of_search = compose(search_line(seed, [1.0], runs, []), "search")
    recipe, graded = of_search.pipeline.distill, of_search.measure.task
    training = [
        *(f"pipeline.distill.{name}={recipe[name]}" for name in ("steps", "batch_size", "packing")),
        f"pipeline.distill.lr_scheduler.num_warmup_steps={recipe.lr_scheduler.num_warmup_steps}",
        f"measure.task.split={graded.split}", f"measure.task.limit={graded.limit}", "measure_all=false",
        "+teacher_cache@pipeline.distill.cache=exact",
    ]  # fmt: skip
    return [
        [
            "+experiment=front_llama", *training, f"pipeline.prune_structured.budget.share={share}",
            f"pipeline.quantize.bits={bits}", f"seed={seed}", f"runs={runs}", f"name=grid-{seed}", "logger=none", *more,
        ]
        for share, bits in pairs
    ]  # fmt: skip


def folder_of(seed: int, runs: Path) -> Path:
    """Runs of a seed, apart from other seeds': a point of equal recipes would join them."""
    return runs / f"seed-{seed}"


def run(arguments: argparse.Namespace) -> None:
    """Train the sides that are asked for, of every seed; what is done is not done again."""
    for seed in arguments.seeds:
        runs = folder_of(seed, arguments.runs)
        runs.mkdir(parents=True, exist_ok=True)
        if "search" in arguments.sides and not spent(runs, "search", seed):
            began = time.monotonic()
            line = search_line(seed, arguments.budgets, runs, arguments.more)
            subprocess.run([sys.executable, "-m", "slimexp.search", *line], check=True, env=dict(os.environ))
            _note(runs, "search", seed, time.monotonic() - began, [0])
        if "grid" in arguments.sides:
            allowed = arguments.seconds or spent(runs, "search", seed)
            if not allowed:
                raise SystemExit(
                    f"seed {seed}: the grid has the time that the search took: run that, or give --seconds"
                )
            train_grid(grid_lines(seed, runs, arguments.grid), runs, seed, allowed)


def train_grid(lines: Sequence[Sequence[str]], runs: Path, seed: int, allowed: float) -> None:
    """Begin trainings of the grid until the time is over, as many at once as a search does."""
    cores = torch.get_num_threads()
    workers = min(2, cores)
    done = finished(runs, seed)  # side by side, they end in another order than they begin
    began = time.monotonic() - spent(runs, "grid", seed)
    waiting = [Job(number, (tuple(line),), runs / f"grid-{seed}" / f"{number:03d}.log") for number, line in
               enumerate(lines) if number not in done]  # fmt: skip
    with Pool(workers=workers, threads=cores // workers, prepare=train) as pool:
        while True:
            while waiting and pool.free and time.monotonic() - began < allowed:
                pool.submit(waiting.pop(0))
            if not pool.busy:
                return
            for job, outcome in pool.finished():
                if outcome.error is not None:
                    raise SystemExit(f"grid {job.number}: {outcome.error} (all in {job.log})")
                done.append(job.number)
                _note(runs, "grid", seed, time.monotonic() - began, done)
                seconds = time.monotonic() - began
                print(f"seed {seed}: {len(done)} of the grid, {seconds:.0f} of {allowed:.0f} s", flush=True)


def spent(runs: Path, side: str, seed: int) -> float:
    """Seconds that a side took; 0 where it has not begun."""
    return float(_noted(runs, side, seed).get("seconds", 0.0))


def finished(runs: Path, seed: int) -> list[int]:
    """Numbers of the trainings of the grid that are done."""
    return list(_noted(runs, "grid", seed).get("done", []))


def _noted(runs: Path, side: str, seed: int) -> dict[str, Any]:
    path = runs / f"seconds-{side}-{seed}.json"  # one for each process that may run beside others
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _note(runs: Path, side: str, seed: int, seconds: float, done: Sequence[int]) -> None:
    (runs / f"seconds-{side}-{seed}.json").write_text(json.dumps({"seconds": seconds, "done": list(done)}))


def section_of(runs: Path, seed: int) -> Section:
    """The section in which both sides are graded, or at least one."""
    return max(load(runs), key=lambda section: sum(bool(of_side(section, side, seed)) for side in SIDES))


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


def missed(
    found: Mapping[int, list[Row]], sizes: Mapping[int, dict[str, float]], late: Mapping[int, float]
) -> list[str]:
    """What speaks against the search, in words; ``late`` are seconds beyond what it was allowed."""
    faults = [f"seed {seed}: the search took {seconds:.0f} s longer" for seed, seconds in late.items() if seconds > 0]
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
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seconds", type=float, help="that each side has; otherwise what the search takes")
    parser.add_argument("--toy", action="store_true", help="trainings of 2 steps for one budget")
    parser.add_argument("--report", action="store_true", help="of what is there, without training")
    parser.add_argument("--more", nargs="*", default=[], help="further overrides of the searches")
    parser.add_argument("--grid", nargs="*", default=[], help="further overrides of the grid's trainings")
    arguments: Any = parser.parse_args(given)
    if arguments.toy:
        arguments.seeds, arguments.budgets = arguments.seeds[:1], [4.0]
        arguments.more, arguments.grid = [*arguments.more, *TOY, *TOY_SEARCH], [*arguments.grid, *TOY, *TOY_GRID]
    if not arguments.report:
        run(arguments)
        if len(arguments.sides) < len(SIDES):
            return 0  # --report compares, when all are there
    sections = {seed: section_of(folder_of(seed, arguments.runs), seed) for seed in arguments.seeds}
    found = {seed: rows(section, seed, arguments.budgets) for seed, section in sections.items()}
    sizes = {seed: volumes(section, seed) for seed, section in sections.items()}
    print(table(next(iter(sections.values())), found, sizes))
    allowed = arguments.seconds or float("inf")
    late = {seed: spent(folder_of(seed, arguments.runs), "search", seed) - allowed for seed in arguments.seeds}
    faults = missed(found, sizes, late)
    print("\n".join(f"missed: {fault}" for fault in faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
