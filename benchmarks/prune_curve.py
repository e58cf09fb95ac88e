"""How good is the zoo's Llama with 10 to 90 % of its weights at zero?

    python -m benchmarks.prune_curve
    python -m benchmarks.prune_curve --seeds 0 1 2 --sparsities 0.5 --methods sparsegpt finetuned trainer=gpu

Per sparsity and seed it prunes in one shot by every importance, and trains ``+experiment=prune_llama``, which prunes by
the experiment's own importance and goes on training. Further overrides go to every run. Weights compete within layers,
by Wanda within rows, as published. Perplexity is that of the saved artifact on the test split. Finished stages are not
done again. Prints a Markdown table, writes ``RUNS/NAME.json`` and draws ``RUNS/NAME.png``; exits with status 1
unless the finetuned model at 50 % has at most ``--ratio`` times the dense model's perplexity (mean over seeds).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import command
from slimexp.config.check import check
from slimexp.config.composition import compose

METRIC = "perplexity"
FINETUNED = "finetuned"
HALF = 0.5

Curves = Mapping[str, Mapping[float, Sequence[float]]]  # method -> sparsity -> perplexity per seed


def overrides(method: str, sparsity: float, seed: int, arguments: argparse.Namespace) -> list[str]:
    """The command line of one point."""
    stage = "pipeline.prune"
    own = [f"seed={seed}", f"runs={arguments.runs}", f"name={arguments.name}", f"{stage}.sparsity={sparsity}"]
    if method != FINETUNED:
        own += [f"{stage}.steps=0", f"importance@{stage}.importance={method}", f"~{stage}.losses.kl"]
    if method == "wanda":
        own.append(f"{stage}.pattern.scope=row")
    return [
        "+experiment=prune_llama",
        "logger=none",
        "measure=[task]",
        "measure.task.limit=null",
        *arguments.overrides,
        *own,
    ]


def measured(arguments: argparse.Namespace) -> tuple[float, Curves]:
    """Perplexity of the dense model, and of every point."""
    from slimexp.pipeline.pipeline import Pipeline

    dense = 0.0
    curves: dict[str, dict[float, list[float]]] = {}
    for method in arguments.methods:
        for sparsity in arguments.sparsities:
            for seed in arguments.seeds:
                lines = overrides(method, sparsity, seed, arguments)
                cfg = compose(lines)
                check(cfg)
                pipeline = Pipeline(cfg, overrides=lines)
                found = pipeline.run()[METRIC]
                dense = pipeline.dense_metrics[METRIC]
                curves.setdefault(method, {}).setdefault(sparsity, []).append(found)
                print(f"{method} at {sparsity:.0%}, seed {seed}: {found:.2f} ({found / dense:.3f}x)", flush=True)
    return dense, curves


def table(dense: float, curves: Curves) -> str:
    """Perplexity as a multiple of the dense model's, mean over seeds."""
    lines = [["zeros", *curves], ["---:"] * (1 + len(curves)), ["0 %", *["1.000x"] * len(curves)]]
    for sparsity in next(iter(curves.values())):
        means = [statistics.fmean(curve[sparsity]) / dense for curve in curves.values()]
        lines.append([f"{sparsity:.0%}".replace("%", " %"), *(f"{mean:.3f}x" for mean in means)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\ndense: {METRIC} {dense:.3f}"


def draw(dense: float, curves: Curves, path: Path) -> None:
    """A line per method; where there are several seeds, their range."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    from slimexp.analysis.style import COLOURS, MARKERS, REFERENCE, number

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        axes = figure.subplots()
        for (method, curve), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
            means = [statistics.fmean(values) for values in curve.values()]
            ends = [(mean - min(v), max(v) - mean) for mean, v in zip(means, curve.values(), strict=True)]
            bars = list(zip(*ends, strict=True))
            x = [100 * sparsity for sparsity in curve]
            axes.errorbar(x, means, yerr=bars, color=colour, marker=marker, label=method, capsize=2)
        axes.axhline(dense, color=REFERENCE, linestyle=(0, (5, 4)), linewidth=1.2, label=f"dense, {dense:.2f}")
        axes.set(xlabel="weights at zero (%)", ylabel="perplexity per token   ← better", yscale="log", xlim=(0, 100))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.legend(loc="upper left", frameon=False)
        figure.savefig(path, dpi=160, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["magnitude", "wanda", "sparsegpt", FINETUNED])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[tenth / 10 for tenth in range(1, 10)])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ratio", type=float, default=1.10)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--name", default="prune_curve", help="of the runs' folder, the JSON file and the picture")
    arguments = command.parsed(parser)
    dense, curves = measured(arguments)
    stem = Path(arguments.runs) / arguments.name
    stem.with_suffix(".json").write_text(json.dumps({"dense": dense, METRIC: curves}, indent=2) + "\n")
    draw(dense, curves, stem.with_suffix(".png"))
    print(f"\n{table(dense, curves)}\n-> {stem}.png")
    if half := curves.get(FINETUNED, {}).get(HALF):
        ratio = statistics.fmean(half) / dense
        print(f"finetuned at 50 %: {ratio:.3f}x dense over {len(half)} seeds, at most {arguments.ratio}x wanted")
        if ratio > arguments.ratio:
            sys.exit("does not hold")


if __name__ == "__main__":
    main()
