"""What is a teacher worth to students of half and a quarter of SmolLM2-135M, and how fast do they learn?

    python -m benchmarks.distill_smollm2 model.path=SmolLM2-135M-Instruct.Q4_1.gguf
    python -m benchmarks.distill_smollm2 --cached +teacher_cache@pipeline.distill.cache=exact model.path=FILE.gguf
    python -m benchmarks.distill_smollm2 --toy

Per size and seed it trains ``+experiment=distill_smollm2`` (or ``_quarter``) with ``arms=true``: the student, the same
without its teacher, and the same without training, all graded on the same held-out Python source. With ``--cached`` one
more student of each size is trained with these overrides, which keep what the teacher says. Further overrides go to
every run. Differences in bits per byte stand with their paired 95 % intervals over the passages, and their means over
seeds with Student's t interval. Tokens per second are those between the first tenth of the steps and the last, by the
run's own log; finished stages are not done again, and have none. ``--jobs`` runs go side by side, on one GPU after the
other: speeds are those of a GPU of one's own as long as there are as many.

Prints a Markdown table, writes ``RUNS/distill_smollm2.json`` and exits with status 1 where a student is not better
than without its teacher on every seed, or a speed is under its target.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command, workers
from benchmarks.interval import t_interval
from benchmarks.run import Run
from slimexp.record import record
from slimexp.record.record import Record
from slimexp.record.schema import MINUS_ARM

METRIC = "bits_per_byte"
SIZES = {"half": "distill_smollm2", "quarter": "distill_smollm2_quarter"}
STAGE = "distill"
TOY = [  # the Llama that ships, cut alike, for a moment
    "model=llama_python_source", "model.max_length=64", "trainer=fast", "measure.task.limit=6", "logger=none",
    "pipeline.distill.steps=20", "pipeline.distill.batch_size=2", "pipeline.distill.cut.decoder_layers=[0,4,9]",
    "pipeline.distill.cut.ffn=352", "pipeline.distill.cut.calibration_batches=1",
    "pipeline.distill.lr_scheduler.num_warmup_steps=2",
]  # fmt: skip
_STEP = re.compile(r"^  step (\d+) of \d+.*?, ((?:[\d.]+ (?:h|min|s) ?)+)(?:,|$)")
_SECONDS = {"h": 3600, "min": 60, "s": 1}


class Size(NamedTuple):
    """Students of a size, one a seed.

    Attributes:
        name: Of the size.
        rows: Their records.
        speeds: Tokens per second, of those that were trained now.
        cached: The same of the one whose teacher was kept; ``None`` where there is none.
    """

    name: str
    rows: list[Record]
    speeds: list[float]
    cached: float | None


def tokens_per_s(log: str, tokens: int) -> float | None:
    """Speed of a training by its log, after the first tenth of its steps; ``None`` where it has no two lines of them.

    Args:
        log: What a run has printed.
        tokens: Of a step.
    """
    of_stage = log.rpartition(f"\n{STAGE}: training ")[2]
    found = [match for line in of_stage.splitlines() if (match := _STEP.match(line))]
    points = [(int(match[1]), _seconds(match[2])) for match in found]
    if not points:
        return None
    (last, end) = points[-1]
    first, begin = next(point for point in points if point[0] >= last / 10)
    return tokens * (last - first) / (end - begin) if end > begin else None


def _seconds(text: str) -> float:
    words = text.split()
    return sum(float(number) * _SECONDS[unit] for number, unit in zip(words[::2], words[1::2], strict=True))


def train(run: Run, environment: Mapping[str, str]) -> float | None:
    """Train, and return the tokens per second."""
    log = Path(run.cfg.runs) / "distill_smollm2" / f"{run.label.replace(', ', '-').replace(' ', '-')}.log"
    run.train(log, environment)
    stage = run.cfg.pipeline[STAGE]
    tokens = stage.batch_size * stage.accumulate * run.cfg.model.max_length  # rows are packed, hence full
    return tokens_per_s(log.read_text(), tokens)


def planned(arguments: argparse.Namespace) -> dict[str, tuple[list[Run], Run | None]]:
    """Size -> its runs, one a seed, and the one whose teacher is kept."""
    graded = ["measure=[size,task]", "measure.task.limit=null"]  # all held-out passages
    common = [*graded, *(TOY if arguments.toy else []), *arguments.overrides, f"runs={arguments.runs}"]

    def run(size: str, label: str, *more: str) -> Run:
        return Run.composed(label, [f"+experiment={SIZES[size]}", *common, *more])

    return {
        size: (
            [run(size, f"{size}, seed {seed}", f"seed={seed}", "arms=true") for seed in arguments.seeds],
            run(size, f"{size}, cached", f"name={SIZES[size]}_cached", *arguments.cached) if arguments.cached else None,
        )
        for size in arguments.sizes
    }


def measured(plan: Mapping[str, tuple[list[Run], Run | None]], arguments: argparse.Namespace) -> list[Size]:
    """Train the students of all sizes."""
    runs = [run for students, cached in plan.values() for run in (*students, cached) if run is not None]
    speeds = dict(zip((run.label for run in runs), workers.each(train, runs, arguments.jobs), strict=True))
    records = record.read(Path(arguments.runs) / record.FILE)
    return [
        Size(
            name,
            [run.record(records) for run in students],
            [speed for run in students if (speed := speeds[run.label]) is not None],
            None if cached is None else speeds[cached.label],
        )
        for name, (students, cached) in plan.items()
    ]


def difference(row: Record, arm: str) -> tuple[float, float, float]:
    """Bits per byte less an arm's, with the ends of the interval."""
    name = METRIC + MINUS_ARM[arm]
    return row.metrics[name], row.metrics[f"{name}_low"], row.metrics[f"{name}_high"]


def table(sizes: Sequence[Size]) -> str:
    """A row for each student, and one for the mean of a size."""
    arms = list(MINUS_ARM)
    titles = [f"minus {arm.replace('_', ' ')}" for arm in arms]
    lines = [["student", "seed", "parameters", "bits per byte", "dense", *titles, "training"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for size in sizes:
        for row in size.rows:
            share = row.metrics["params_live"] / row.baseline["params_live"]
            differences = [_interval(*difference(row, arm)) for arm in arms]
            figures = [f"{row.metrics[METRIC]:.4f}", f"{row.baseline[METRIC]:.4f}"]
            lines.append(
                [size.name, str(row.seed), f"{share:.1%}", *figures, *differences, f"{row.seconds['train']:.0f} s"]
            )
        mean = statistics.fmean(row.metrics[METRIC] for row in size.rows)
        over_seeds = [_interval(*t_interval([difference(row, arm)[0] for row in size.rows])) for arm in arms]
        lines.append([f"{size.name}, mean", "", "", f"{mean:.4f}", "", *over_seeds, ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def missed(sizes: Sequence[Size], arguments: argparse.Namespace) -> list[str]:
    """What does not hold."""
    faults = []
    for size in sizes:
        unsure = [row.seed for row in size.rows if difference(row, "no_teacher")[2] >= 0]
        faults += [f"{size.name}: no better than without its teacher at seeds {unsure}"] if unsure else []
        online = statistics.fmean(size.speeds) if size.speeds else None
        if online is not None and online < arguments.least_speed:
            faults.append(f"{size.name}: {online:.0f} tokens/s, of at least {arguments.least_speed:.0f}")
        if online is not None and size.cached is not None and size.cached < arguments.least_gain * online:
            faults.append(f"{size.name}: {size.cached / online:.2f}x cached, of at least {arguments.least_gain:g}x")
    return faults


def written(sizes: Sequence[Size]) -> dict[str, Any]:
    """Everything the table shows and where it came from."""
    last = sizes[-1].rows[-1]
    return {
        "sizes": [
            {
                "size": size.name,
                "tokens_per_s": size.speeds,
                "tokens_per_s_cached": size.cached,
                "seeds": [{"seed": row.seed, "key": row.key, "metrics": row.metrics} for row in size.rows],
                "dense": size.rows[0].baseline,
            }
            for size in sizes
        ],
        "git": last.git,
        "versions": last.versions,
        "hardware": last.hardware,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--cached", action="append", help="an override that keeps the teacher; may be repeated")
    parser.add_argument("--least-speed", type=float, default=150_000, help="tokens/s with the teacher online")
    parser.add_argument("--least-gain", type=float, default=2.0, help="times as many cached")
    parser.add_argument("--toy", action="store_true", help="a moment on a CPU, to see that it runs: holds no target")
    arguments = command.parsed(parser, takers=["--cached"])
    folder = Path(arguments.runs)
    sizes = measured(planned(arguments), arguments)
    path = folder / "distill_smollm2.json"
    path.write_text(json.dumps(written(sizes), indent=2) + "\n")
    print(f"\n{table(sizes)}\n")
    for size in sizes:
        online = f"{statistics.fmean(size.speeds):.0f}" if size.speeds else "not trained now"
        print(f"{size.name}: tokens/s {online}" + (f", cached {size.cached:.0f}" if size.cached else ""))
    print(f"-> {path}")
    if not arguments.toy and (faults := missed(sizes, arguments)):
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
