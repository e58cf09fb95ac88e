"""Are milliseconds that a search composes those that are measured?

    python -m benchmarks.latency_table                                                   # the zoo's Llama on a CPU
    python -m benchmarks.latency_table trainer=gpu model=gguf model.path=FILE.gguf       # SmolLM2 on a GPU
    python -m benchmarks.latency_table --toy

It measures the models that a search measures (``slimexp.candidate.cost.probes``), and draws ``--count`` random shapes
from the search's choices: blocks that go x heads x neurons x channels x bits of each block. Each is composed by the
search's table and measured by the search's stopwatch, which takes turns with the dense model. Figures are ratios to the
dense model, so that what else the machine does counts little; what was measured is kept in ``RUNS``. Further arguments
are overrides of the search, as ``search.bits=[16]`` or ``measure.latency.new_tokens=64``.

Prints Markdown, writes ``RUNS/latency_table.json``; exits with status 1 where the median error exceeds ``--most``.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import command
from slimexp.candidate import cost
from slimexp.candidate.choice import Candidate, Choices
from slimexp.candidate.score import Added
from slimexp.candidate.search import Search
from slimexp.candidate.solve import Program
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.config.schema import Search as Schema
from slimexp.pipeline import preflight

FILE = "latency_table.json"
TOY = [
    "trainer=fast", "model.max_length=64", "search.bits=[16,8]", "search.ffn=[0.5]", "search.pairs=6",
    "search.rows=1", "search.graded=2", "measure.latency.tokens=8", "measure.latency.new_tokens=2",
]  # fmt: skip


class Row(NamedTuple):
    """A shape, and its milliseconds as shares of the dense model's.

    Attributes:
        candidate: The shape.
        composed: By the search's table.
        measured: By the search's stopwatch.
    """

    candidate: str
    composed: float
    measured: float

    @property
    def error(self) -> float:
        """How far the composed one is off, as a share of the measured one."""
        return abs(self.composed - self.measured) / self.measured


def prepared(arguments: argparse.Namespace) -> Search:
    """A search that would measure latencies, and is not run."""
    words = [
        "+experiment=search_llama", *(TOY if arguments.toy else []), f"runs={arguments.runs}", "name=latency_table",
        "logger=none", "measure=[size,task,latency]", "budget.latency_ms=1", *arguments.overrides,
    ]  # fmt: skip
    cfg = compose(words, "search")
    check(cfg, schema=Schema)
    return Search(cfg, preflight.training(cfg.copy()), words)


def shapes(choices: Choices, seed: int) -> Iterator[Candidate]:
    """Random shapes without end: of each stack up to half of the blocks go, each block has bits of its own."""
    chance = random.Random(seed)
    while True:
        gone = []
        for stack, depth in choices.stacks.items():
            removable = [place for place in choices.places if place.stack == stack and place in choices.removable]
            gone += chance.sample(removable, chance.randint(0, min(depth // 2, len(removable))))
        stay = [place for place in choices.places if place not in gone]
        same = chance.choice(choices.bits)
        bits = {place: same if choices.one_width else chance.choice(choices.bits) for place in stay}
        depths = [sum(place.stack == stack for place in stay) for stack in ("encoder", "decoder")]
        if not choices.paired or depths[1] <= depths[0]:
            yield Candidate.of(chance.choice(choices.combinations), bits)


def rows(work: Search, count: int, seed: int) -> list[Row]:
    """Random shapes, composed and measured."""
    probes = cost.probes(work.choices)
    times = work.stopwatch.milliseconds(probes, "latency of model")
    table = cost.latency(work.choices, {probe: times[str(probe)] for probe in probes})
    drawn = list(itertools.islice(shapes(work.choices, seed), count))
    dense = work.stopwatch.dense_ms  # of the table, before further ones of the dense model shift it
    program = Program(work.choices, Added({}))
    before = {shape: program.cost(shape, table) / dense for shape in drawn}
    found = work.stopwatch.milliseconds(drawn, "latency of shape")
    return [Row(str(shape), before[shape], found[str(shape)] / work.stopwatch.dense_ms) for shape in drawn]


def table_of(found: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| shape | composed | measured | error |", "| --- | ---: | ---: | ---: |"]
    for row in found:
        lines.append(f"| {row.candidate} | {row.composed:.3f}x | {row.measured:.3f}x | {row.error:.1%} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 where the median error is too large."""
    parser = argparse.ArgumentParser("python -m benchmarks.latency_table", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=12, help="number of random shapes")
    parser.add_argument("--seed", type=int, default=0, help="of the shapes")
    parser.add_argument("--most", type=float, default=0.05, help="median error as a share of what is measured")
    parser.add_argument("--runs", type=Path, default=Path("runs/latency_table"))
    parser.add_argument("--toy", action="store_true", help="two shapes, short requests: does it run?")
    arguments: Any = command.parsed(parser, given)
    found = rows(prepared(arguments), 2 if arguments.toy else arguments.count, arguments.seed)
    errors = [row.error for row in found]
    median, ninth = (float(np.quantile(errors, share)) for share in (0.5, 0.9))
    path = arguments.runs / FILE
    content = {"median": median, "p90": ninth, "shapes": [row._asdict() | {"error": row.error} for row in found]}
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\n{table_of(found)}\n\nerror: median {median:.1%}, 90 % below {ninth:.1%}\n-> {path}")
    if not arguments.toy and median > arguments.most:
        print(f"missed: a median error of {median:.1%}, of at most {arguments.most:.0%}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
