"""Does the distilled student keep the teacher's gain, and does it need the teacher for it?

    python -m benchmarks.distill_gain
    python -m benchmarks.distill_gain --jobs 3 --name tenth --kept 0.70 trainer=gpu pipeline.distill.steps=20000 ...

Per seed it trains ``+experiment=distill_t5`` and the same student from the same start on the same batches without the
terms of the loss that read the teacher. Further overrides go to every run. Two questions, over the seeds:

- kept: mean of (copy - student) / (copy - teacher) in the headline on the test split is at least ``--kept``;
- gain: mean of the paired differences, without teacher minus with, has a 95 % t interval above 0.

Figures come from ``RUNS/records.jsonl``; finished stages are not done again. Prints a Markdown table, writes
``RUNS/NAME.json`` and exits with status 1 unless both hold. Seeds run side by side up to ``--jobs``.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command
from benchmarks.interval import CONFIDENCE, Interval, t_interval
from benchmarks.run import Run, headline, teacher_terms
from slimexp.record import record
from slimexp.record.figures import retention
from slimexp.record.record import Record


class Pair(NamedTuple):
    """One seed: the student with its teacher and without."""

    seed: int
    taught: Record
    alone: Record

    @property
    def gain(self) -> float:
        """How much better the headline is with the teacher."""
        difference = headline(self.alone) - headline(self.taught)
        return difference if self.taught.direction == "min" else -difference


def planned(arguments: argparse.Namespace) -> dict[int, tuple[Run, Run]]:
    """Seed -> the run with its teacher and the run without."""
    runs = {}
    for seed in arguments.seeds:
        own = [f"seed={seed}", f"runs={arguments.runs}", f"name={arguments.name}"]
        overrides = [f"+experiment={arguments.experiment}", *arguments.overrides, *own]
        taught = Run.composed(f"seed {seed} with teacher", overrides)
        without = teacher_terms(taught.cfg)
        if not without:
            sys.exit(f"no loss of {arguments.experiment} reads a teacher: there is nothing to compare")
        runs[seed] = taught, Run.composed(f"seed {seed} without teacher", [*overrides, *without])
    return runs


def table(pairs: Sequence[Pair], gain: Interval) -> str:
    first = pairs[0].taught
    name = first.headline
    lines = [
        ["seed", f"{name} copy", f"{name} teacher", f"{name} student", f"{name} without teacher", "kept", "gain"],
        ["---", *["---:"] * 6],
    ]
    for pair in pairs:
        figures = [pair.taught.trivial, pair.taught.baseline[name], headline(pair.taught), headline(pair.alone)]
        row = [*(f"{figure:.4f}" for figure in figures), f"{retention(pair.taught):.1%}", f"{pair.gain:+.4f}"]
        lines.append([str(pair.seed), *row])
    kept = statistics.fmean(retention(pair.taught) or 0.0 for pair in pairs)
    means = [statistics.fmean(headline(getattr(pair, arm)) for pair in pairs) for arm in ("taught", "alone")]
    lines.append(["mean", "", "", *(f"{mean:.4f}" for mean in means), f"{kept:.1%}", f"{gain.mean:+.4f}"])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    size = first.metrics.get("params_live", 0.0) / first.baseline.get("params_live", float("inf"))
    seconds = statistics.fmean(pair.taught.seconds["train"] for pair in pairs)
    return (
        f"{rows}\n\nstudent: {size:.1%} of the teacher's parameters, {seconds:.0f} s of training, "
        f"{first.metrics.get('task_examples', 0):.0f} test rows\n"
        f"gain from the teacher: {gain.mean:+.4f} {name}, "
        f"{CONFIDENCE:.0%} interval [{gain.low:+.4f}, {gain.high:+.4f}], {len(pairs)} paired seeds"
    )


def result(pairs: Sequence[Pair], gain: Interval, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything the table shows and where it came from, for the JSON file."""
    kept = [retention(pair.taught) or 0.0 for pair in pairs]
    mean = statistics.fmean(kept)
    first = pairs[0].taught
    rows = [
        {
            "seed": pair.seed,
            "trivial": pair.taught.trivial,
            "teacher": pair.taught.baseline,
            "student": pair.taught.metrics,
            "without_teacher": pair.alone.metrics,
            "kept": share,
            "gain": pair.gain,
            "keys": [pair.taught.key, pair.alone.key],
        }
        for pair, share in zip(pairs, kept, strict=True)
    ]
    return {
        "headline": first.headline,
        "overrides": [f"+experiment={arguments.experiment}", *arguments.overrides],
        "seeds": rows,
        "kept": {"mean": mean, "target": arguments.kept, "holds": mean >= arguments.kept},
        "gain": {**gain._asdict(), "confidence": CONFIDENCE, "holds": gain.low > 0},
        "git": first.git,
        "versions": first.versions,
        "hardware": first.hardware,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="distill_t5")
    parser.add_argument("--name", default="distill_gain", help="of the runs' folder and the JSON file below --runs")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="seeds trained at the same time")
    parser.add_argument("--kept", type=float, default=0.75, help="share of the teacher's gain that must be kept")
    arguments = command.parsed(parser)
    plan = planned(arguments)
    folder = Path(arguments.runs)

    def train(seed: int) -> None:  # one after the other: both need the same dense artifact
        for arm, run in zip(("taught", "alone"), plan[seed], strict=True):
            run.train(folder / arguments.name / f"{arm}-{seed}.log")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(train, plan))
    records = record.read(folder / record.FILE)
    pairs = [Pair(seed, taught.record(records), alone.record(records)) for seed, (taught, alone) in plan.items()]
    gain = t_interval([pair.gain for pair in pairs])
    outcome = result(pairs, gain, arguments)
    path = folder / f"{arguments.name}.json"
    path.write_text(json.dumps(outcome, indent=2) + "\n")
    print(f"\n{table(pairs, gain)}\n-> {path}")
    if failed := [name for name in ("kept", "gain") if not outcome[name]["holds"]]:
        sys.exit(f"does not hold: {', '.join(failed)}")


if __name__ == "__main__":
    main()
