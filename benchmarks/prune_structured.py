"""Does a model that lost a quarter of its parameters keep its quality, and is it as much faster as it is smaller?

    python -m benchmarks.prune_structured
    python -m benchmarks.prune_structured --experiment prune_structured_t5 pipeline.prune_structured.steps=300

Trains ``+experiment=prune_structured_llama`` for every seed, one after the other; further overrides go to every run.
Three figures, each a mean over the seeds, must reach their targets:

- kept: (trivial - pruned) / (trivial - dense) in the headline on the whole test split;
- latency: seconds of a request of the dense model over those of the pruned one, prefill and decoding together;
- decode: the same of decoding alone.

Times are medians of interleaved pairs (measure ``latency``) on the machine as it is, so run nothing beside it. Figures
come from ``RUNS/records.jsonl``; finished stages are not done again. Prints a Markdown table; exits with status 1 on a
miss.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.run import Run, headline
from slimexp.record import record
from slimexp.record.figures import retention
from slimexp.record.record import Record


def figures(row: Record) -> dict[str, float]:
    """What a seed came to."""
    return {
        "parameters": row.metrics["params_live"] / row.baseline["params_live"],
        "kept": retention(row) or 0.0,
        "latency": 1 / row.metrics["latency_ratio"],
        "decode": row.metrics["decode_ratio"],
    }


def missed(rows: Sequence[Record], targets: Mapping[str, float], share: float) -> list[str]:
    """Targets that the means over seeds do not reach, in words."""
    found = [figures(row) for row in rows]
    means = {name: statistics.fmean(one[name] for one in found) for name in targets}
    misses = [f"{name} {means[name]:.3g} < {least:g}" for name, least in targets.items() if means[name] < least]
    most = max(one["parameters"] for one in found)
    return misses + ([f"parameters {most:.3g} > {share:g}"] if most > share else [])


def table(rows: Sequence[Record]) -> str:
    name = rows[0].headline
    lines = [
        ["seed", "parameters", f"{name} dense", f"{name} pruned", "kept", "latency", "decode", "training"],
        ["---", *["---:"] * 7],
    ]
    for row in rows:
        one = figures(row)
        lines.append(
            [
                str(row.seed),
                f"{one['parameters']:.1%}",
                f"{row.baseline[name]:.4f}",
                f"{headline(row):.4f}",
                f"{one['kept']:.1%}",
                f"{one['latency']:.2f}x",
                f"{one['decode']:.2f}x" + (" (crowded)" if row.metrics["latency_noisy"] else ""),
                f"{row.seconds['train']:.0f} s",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\ntrivial {rows[0].trivial:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="prune_structured_llama")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kept", type=float, default=0.98, help="share of the dense model's gain, at least")
    parser.add_argument("--faster", type=float, default=1.25, help="times the dense model's speed, at least")
    parser.add_argument("--share", type=float, default=0.75, help="of the parameters, at most")
    arguments = command.parsed(parser)
    folder = Path(arguments.runs)
    runs = {
        seed: Run.composed(
            f"seed {seed}",
            [
                f"+experiment={arguments.experiment}",
                *arguments.overrides,
                *("measure.task.limit=null", f"seed={seed}", f"runs={folder}", "name=benchmark_prune_structured"),
            ],
        )
        for seed in arguments.seeds
    }
    for seed, run in runs.items():
        run.train(folder / "benchmark_prune_structured" / f"seed-{seed}.log")
    records = record.read(folder / record.FILE)
    rows = [run.record(records) for run in runs.values()]
    print(f"\n{table(rows)}")
    targets = {"kept": arguments.kept, "latency": arguments.faster, "decode": arguments.faster}
    if misses := missed(rows, targets, arguments.share):
        sys.exit(f"missed: {', '.join(misses)}")


if __name__ == "__main__":
    main()
