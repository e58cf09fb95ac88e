"""In which order should a model be pruned, quantized and trained, at equal compute?

    python -m benchmarks.order                                             # the zoo's Llama, half masked, int4
    python -m benchmarks.order --pruning removal                           # a quarter of it removed instead
    python -m benchmarks.order --steps 300 model=gguf model.path=FILE.gguf trainer=gpu
    python -m benchmarks.order --toy                                       # one seed, two steps: does it run?

Pruning and rounding are done at once, without training of their own; all training is in one stage. Where something
was compressed before it, that stage learns from the dense model; where it comes first, student and teacher would be
one, and it learns from the text alone. Masks and integers that are there are trained through. Every order gets the
compute of ``--steps`` steps behind pruning and rounding: 6 FLOPs per token and parameter of the student, 2 of the
teacher (Kaplan et al., 2020, "Scaling laws for neural language models", section 2.1), so that a student that is not yet
smaller is trained for fewer steps. Masked weights cost what others do. Removal comes before integers: the other three
orders are refused, and the table says so.

Quality is the perplexity of the saved model on the whole test split, for every seed. "Behind the best" is the paired
difference, seed by seed, from the order with the lowest mean. Finished stages are kept and shared by orders that begin
alike. Further arguments are overrides of all runs. Prints Markdown; exits with status 1 where an order has no figures.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from benchmarks import command, workers
from benchmarks.run import Run
from slimexp.record import record
from slimexp.record.record import Record

PRUNE, QUANTIZE, TRAIN = "prune", "quantize", "train"
ORDERS = tuple(permutations((PRUNE, QUANTIZE, TRAIN)))
REFERENCE = (PRUNE, QUANTIZE, TRAIN)
KEPT = 0.75  # share of the parameters that a removal leaves
MASKS = ("steps=0", "sparsity=0.5", "pattern.scope=row")
REMOVAL = ("steps=0", f"budget.share={KEPT}")
ROUNDED = ("steps=0", "bits=4", "activation_bits=null")
SOFT = ("losses.ce.weight=0.25", "losses.kl.temperature.start=1.0")  # as experiment=slim_llm learns

Order = tuple[str, ...]


class Plan(NamedTuple):
    """An order, as a run.

    Attributes:
        stages: Options of ``conf/technique``, in order.
        steps: Of training.
        settings: Of the stages.
    """

    stages: tuple[str, ...]
    steps: int
    settings: tuple[str, ...]


def planned(order: Order, steps: int, *, removes: bool) -> Plan:
    """How an order is run with the compute of ``steps`` steps in the order of ``REFERENCE``."""
    prune = "prune_structured" if removes else "prune"
    train = "finetune" if order[0] == TRAIN else "distill"
    steps = max(1, round(steps * _cost(REFERENCE, removes=removes) / _cost(order, removes=removes)))
    settings = {
        prune: REMOVAL if removes else MASKS,
        QUANTIZE: ROUNDED,
        train: (f"steps={steps}", "batch_size=8", *(SOFT if train == "distill" else ())),
    }
    stages = tuple({PRUNE: prune, TRAIN: train}.get(word, word) for word in order)
    chosen = [] if removes else ["importance@pipeline.prune.importance=wanda"]
    chosen += [f"pipeline.{stage}.{value}" for stage in stages for value in settings[stage]]
    return Plan(stages, steps, tuple(chosen))


def _cost(order: Order, *, removes: bool) -> float:
    """FLOPs of training per token and parameter of the dense model."""
    smaller = removes and order.index(PRUNE) < order.index(TRAIN)
    return 6 * (KEPT if smaller else 1) + (0 if order[0] == TRAIN else 2)


def is_refused(order: Order, *, removes: bool) -> bool:
    """Whether parts would be taken out of weights that are integers already."""
    return removes and order.index(QUANTIZE) < order.index(PRUNE)


def line(plan: Plan, seed: int, arguments: argparse.Namespace) -> list[str]:
    """The command line of a run."""
    return [
        "model=llama_python_source", "data=python_source", "logger=none", "trainer.enable_progress_bar=false",
        "measure=[size,task]", "measure.task.limit=null", f"pipeline=[{','.join(plan.stages)}]", *plan.settings,
        f"seed={seed}", f"runs={arguments.runs}", f"name={arguments.name}", *arguments.overrides,
    ]  # fmt: skip


def run(words: Sequence[str]) -> str:
    """One run, in a worker; returns the key of its last stage."""
    return Run.composed(" ".join(words), words).train_here()


def run_all(orders: Sequence[Order], arguments: argparse.Namespace) -> dict[Order, list[Record] | str]:
    """Order -> records of its last stage, one per seed, or why it has none."""
    removes = arguments.pruning == "removal"
    lines = [
        (order, line(planned(order, arguments.steps, removes=removes), seed, arguments))
        for seed in arguments.seeds
        for order in orders
    ]
    keys: dict[Order, list[str] | str] = {order: [] for order in orders}
    with workers.processes(arguments.workers) as pool:
        futures = [(order, pool.submit(run, words)) for order, words in lines]
        for order, future in futures:
            before = keys[order]
            if (error := future.exception()) is not None:
                keys[order] = f"failed: {type(error).__name__}: {error}".splitlines()[0]
                print(f"{' -> '.join(order)} {keys[order]}", flush=True)
            elif isinstance(before, list):
                keys[order] = [*before, future.result()]
    if all(isinstance(found, str) for found in keys.values()):
        sys.exit("no order has figures")
    records = {one.key: one for one in record.written(arguments.runs / record.FILE, quiet=True)}
    return {
        order: found if isinstance(found, str) else [records[key] for key in found] for order, found in keys.items()
    }


def table(results: Mapping[Order, list[Record] | str], arguments: argparse.Namespace) -> str:
    """Markdown: the orders, the best first."""
    removes = arguments.pruning == "removal"
    means = {
        order: statistics.fmean(one.metrics["perplexity"] for one in found)
        for order, found in results.items()
        if not isinstance(found, str)
    }
    lines = ["| order | steps | seeds | perplexity | of dense | behind the best | MB |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for order in sorted(results, key=lambda order: means.get(order, float("inf"))):
        found, name = results[order], " -> ".join(order)
        if isinstance(found, str):
            lines.append(f"| {name} | | | {found} | | | |")
            continue
        best = results[min(means, key=means.__getitem__)]
        assert not isinstance(best, str)
        behind = [
            one.metrics["perplexity"] - other.metrics["perplexity"] for one, other in zip(found, best, strict=True)
        ]
        cells = [
            name,
            str(planned(order, arguments.steps, removes=removes).steps),
            str(len(found)),
            _spread([one.metrics["perplexity"] for one in found]),
            f"{means[order] / found[0].baseline['perplexity']:.3f}x",
            "" if found is best else f"{statistics.fmean(behind):.3f} ({min(behind):.3f} to {max(behind):.3f})",
            f"{found[0].metrics['disk_mb']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruning", choices=["masks", "removal"], default="masks")
    parser.add_argument("--steps", type=int, default=100, help="of training behind pruning and rounding")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, on one GPU after the other")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--name", default="order")
    parser.add_argument("--toy", action="store_true", help="one seed, two steps, a few rows")
    arguments = command.parsed(parser)
    if arguments.toy:
        arguments.steps, arguments.seeds = 2, [0]
        arguments.overrides = ["measure.task.limit=4", "model.max_length=64", *arguments.overrides]
    removes = arguments.pruning == "removal"
    refused = [order for order in ORDERS if is_refused(order, removes=removes)]
    results = run_all([order for order in ORDERS if order not in refused], arguments)
    results |= dict.fromkeys(refused, "refused: removal comes before integers")
    print(f"{arguments.pruning}, int4, {arguments.steps} steps\n\n{table(results, arguments)}", flush=True)
    if any(isinstance(found, str) for order, found in results.items() if order not in refused):
        sys.exit(1)


if __name__ == "__main__":
    main()
