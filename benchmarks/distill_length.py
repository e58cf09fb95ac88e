"""How small can the student be that keeps the teacher's gain, when it is trained at length on a GPU?

    python -m benchmarks.distill_length logger=none

Trains ``+experiment=distill_t5_half``, ``_quarter`` and ``_tenth`` for every seed, side by side and spread over the
GPUs that torch sees; further overrides go to every run. Small models leave most of a GPU idle: NVIDIA's multi-process
service (``nvidia-cuda-mps-control -d``) lets runs share it. Per size the mean over seeds of (copy - student) / (copy -
teacher) in the headline on the test split must reach the target.

Prints a Markdown table, writes ``RUNS/distill_length.json`` and exits with status 1 where a target is missed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command, workers
from benchmarks.run import Run, headline
from slimexp.record import record
from slimexp.record.figures import retention
from slimexp.record.record import Record


class Size(NamedTuple):
    """A student and what it must keep.

    Attributes:
        share: Of the teacher's parameters, at most.
        target: Share of the teacher's gain that must be kept.
    """

    share: float
    target: float


SIZES = {"half": Size(1 / 2, 0.95), "quarter": Size(1 / 4, 0.88), "tenth": Size(1 / 10, 0.70)}


def summary(name: str, size: Size, rows: list[Record]) -> dict[str, Any]:
    """Figures of one size over its seeds."""
    first = rows[0]
    kept = [retention(row) or 0.0 for row in rows]
    share = first.metrics["params_live"] / first.baseline["params_live"]
    return {
        "size": name,
        "share": share,
        "mb": first.metrics["disk_mb"],
        "headline": first.headline,
        "student": [headline(row) for row in rows],
        "teacher": first.baseline[first.headline],
        "trivial": first.trivial,
        "kept": kept,
        "target": size.target,
        "holds": share <= size.share and statistics.fmean(kept) >= size.target,
        "seconds": [row.seconds["train"] for row in rows],
    }


def table(sizes: list[dict[str, Any]]) -> str:
    head = ["student", "parameters", "MB", sizes[0]["headline"], "kept", "target", "training"]
    lines = [head, ["---", *["---:"] * 6]]
    for size in sizes:
        kept = ", ".join(f"{share:.1%}" for share in size["kept"])
        lines.append(
            [
                size["size"],
                f"{size['share']:.1%}",
                f"{size['mb']:.2f}",
                f"{statistics.fmean(size['student']):.4f}",
                f"{statistics.fmean(size['kept']):.1%} ({kept})",
                f"{size['target']:.0%}",
                f"{statistics.fmean(size['seconds']):.0f} s",
            ]
        )
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{rows}\n\nteacher {sizes[0]['teacher']:.4f}, copying the input {sizes[0]['trivial']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=9, help="runs trained at the same time")
    arguments = command.parsed(parser)
    folder = Path(arguments.runs)
    plan = {
        name: [
            Run.composed(
                f"{name}, seed {seed}",
                [f"+experiment=distill_t5_{name}", *arguments.overrides, f"seed={seed}", f"runs={folder}"],
            )
            for seed in arguments.seeds
        ]
        for name in arguments.sizes
    }
    runs = [run for of_size in plan.values() for run in of_size]

    def train(run: Run, environment: Mapping[str, str]) -> None:
        run.train(folder / "distill_length" / f"{run.label.replace(', ', '-').replace(' ', '-')}.log", environment)

    workers.each(train, runs, arguments.jobs)
    records = record.read(folder / record.FILE)
    rows = {name: [run.record(records) for run in of_size] for name, of_size in plan.items()}
    sizes = [summary(name, SIZES[name], of_size) for name, of_size in rows.items()]
    last = rows[arguments.sizes[-1]][-1]
    outcome = {"sizes": sizes, "git": last.git, "versions": last.versions, "hardware": last.hardware}
    path = folder / "distill_length.json"
    path.write_text(json.dumps(outcome, indent=2) + "\n")
    print(f"\n{table(sizes)}\n-> {path}")
    if missed := [size["size"] for size in sizes if not size["holds"]]:
        sys.exit(f"target missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
