"""What does a mixture keep without a quarter of its experts, and does it matter which go, or whether they are merged?

    python -m benchmarks.experts --jobs 4                    # trains +experiment=teacher_moe first, on a GPU
    python -m benchmarks.experts --model FOLDER_OR_HUB_ID    # another mixture
    python -m benchmarks.experts --toy                       # one seed, some steps on a CPU: does it run?

From the mixture, per seed, it trains ``+experiment=prune_experts`` three times: a quarter of the experts pruned by REAP
or by the number of tokens that they see, or merged. Each is followed by the same short distillation from the whole
model. Further arguments are overrides of these runs.

Kept is the share of the whole model's gain over no model, in the headline on the whole test split, before and after
distillation; differences from REAP are those on the same rows. 95 % intervals are over rows and seeds. Prints Markdown,
writes ``RUNS/experts.json``; exits with status 1 unless REAP keeps ``--least`` after distillation.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command
from benchmarks.article import train_all
from benchmarks.run import Run
from slimexp.analysis.section import Section, load
from slimexp.record import record
from slimexp.record.figures import KEPT

ARMS = {"reap": "pruned by REAP", "frequency": "pruned by frequency", "merge": "merged"}  # pipeline option -> in tables
REAP = "reap"
REMOVED = "prune_structured"  # the stage that removes experts
NAME = "experts"
TOY_MIXTURE = [
    "tokenizer@model.tokenizer=bytes", "data.packages=none", "trainer=fast", "model.config.hidden_size=32",
    "model.config.num_hidden_layers=2", "model.config.num_attention_heads=2", "model.config.num_key_value_heads=1",
    "model.max_length=64", "pipeline.finetune.steps=200", "pipeline.finetune.batch_size=8",
    "pipeline.finetune.workers=0", "pipeline.finetune.pad_to=64", "pipeline.finetune.lr_scheduler.num_warmup_steps=0",
    "measure.task.limit=20",
]  # fmt: skip
TOY = [
    "model.max_length=64", "trainer=fast", "pipeline.prune_structured.importance.rows=4", "pipeline.distill.steps=3",
    "pipeline.distill.batch_size=2", "pipeline.distill.lr_scheduler.num_warmup_steps=0", "measure.task.limit=20",
]  # fmt: skip


class Row(NamedTuple):
    """A way to have fewer experts.

    Attributes:
        arm: Of ``ARMS``.
        size: MB on disk.
        share: The same, of the whole model's.
        once: Share of the gain that is kept before training, with its interval; ``None`` where it is unknown.
        kept: The same after distillation.
        apart: Less what REAP keeps, with its interval; ``None`` for REAP.
    """

    arm: str
    size: float
    share: float
    once: tuple[float, float, float] | None
    kept: tuple[float, float, float] | None
    apart: tuple[float, float, float] | None


def mixture(arguments: argparse.Namespace) -> Run:
    """The run that trains the whole model."""
    toy = TOY_MIXTURE if arguments.toy else []
    own = [f"runs={arguments.runs}", "logger=none", "measure=[size,task]"]
    return Run.composed("mixture", ["+experiment=teacher_moe", *toy, *own])


def planned(arm: str, seed: int, model: str, arguments: argparse.Namespace) -> Run:
    """The run of an arm with a seed."""
    own = [
        f"model.path={model}", f"pipeline.{REMOVED}.experts={arm}",
        f"pipeline.{REMOVED}.budget.share={arguments.share}", "measure=[size,task]", f"seed={seed}",
        f"runs={arguments.runs}", f"name={NAME}-{arm}", "logger=none",
    ]  # fmt: skip
    rows = [] if arguments.toy else ["measure.task.limit=null"]
    toy = TOY if arguments.toy else []
    return Run.composed(f"{arm}, seed {seed}", ["+experiment=prune_experts", *rows, *toy, *own, *arguments.overrides])


def train(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Train the mixture, unless one is given, and every arm with every seed; arm -> keys of its last stages."""
    model = arguments.model
    if model is None:
        [key] = train_all([mixture(arguments)], arguments.runs, 1, name=NAME)
        model = str(next(arguments.runs.glob(f"*/*-{key}/artifact")))
    runs = {(arm, seed): planned(arm, seed, model, arguments) for seed in arguments.seeds for arm in ARMS}
    first, *others = runs.values()
    keys = train_all([first], arguments.runs, 1, name=NAME)  # the whole model is measured once
    keys += train_all(others, arguments.runs, arguments.jobs, name=NAME)
    return {arm: [key for (own, _), key in zip(runs, keys, strict=True) if own == arm] for arm in ARMS}


def rows(section: Section, keys: Mapping[str, Sequence[str]], parents: Mapping[str, str | None]) -> list[Row]:
    """Every arm, with what it keeps.

    Args:
        section: Points of all runs there, of other shares and mixtures too.
        keys: Arm -> keys of its last stages, one a seed.
        parents: Key of a stage -> that of the stage before it.
    """
    place = {key: index for index, point in enumerate(section.points) for key in point.keys}
    trained = {arm: place[keys[arm][0]] for arm in ARMS}
    return [
        Row(
            arm,
            section.points[index].value("disk_mb"),
            section.points[index].value("size_ratio"),
            _kept(section, place[parents[keys[arm][0]] or ""]),
            _kept(section, index),
            None if arm == REAP else _apart(section, index, trained[REAP]),
        )
        for arm, index in trained.items()
    ]


def _kept(section: Section, index: int) -> tuple[float, float, float] | None:
    interval = section.comparisons.interval(index, KEPT)
    value = section.points[index].value(KEPT)
    return None if interval is None else (value, interval.low, interval.high)


def _apart(section: Section, index: int, other: int) -> tuple[float, float, float] | None:
    comparison = section.comparisons.compare(index, other, KEPT)
    return None if comparison is None else (comparison.difference, comparison.low, comparison.high)


def table(found: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| experts | MB | of the whole | kept, one-shot | kept, distilled | minus REAP |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in found:
        once, kept, apart = _words(row.once), _words(row.kept), _words(row.apart, sign="+")
        lines.append(f"| {ARMS[row.arm]} | {row.size:.2f} | {row.share:.2f}x | {once} | {kept} | {apart} |")
    return "\n".join(lines)


def _words(figure: tuple[float, float, float] | None, sign: str = "") -> str:
    if figure is None:
        return ""
    value, low, high = (f"{100 * part:{sign}.2f}" for part in figure)
    return f"{value} % [{low}, {high}]"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.experts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="a mixture; without, +experiment=teacher_moe is trained")
    parser.add_argument("--share", type=float, default=0.75, help="of the experts that stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/experts"))
    parser.add_argument("--least", type=float, default=0.95, help="share of the gain that REAP and distillation keep")
    parser.add_argument("--toy", action="store_true")
    arguments: Any
    arguments = command.parsed(parser, given)
    if arguments.toy:
        arguments.seeds = arguments.seeds[:1]
    keys = train(arguments)
    parents = {one.key: one.parent for one in record.read(arguments.runs / record.FILE)}
    found = rows(next(s for s in load(arguments.runs) if _holds(s, keys[REAP][0])), keys, parents)
    path = arguments.runs / f"{NAME}.json"
    path.write_text(json.dumps([row._asdict() for row in found], indent=2) + "\n")
    print(f"\n{table(found)}\n-> {path}")
    kept = next(row.kept for row in found if row.arm == REAP)
    if not arguments.toy and (kept is None or kept[0] < arguments.least):
        share = "an unknown share" if kept is None else f"{kept[0]:.1%}"
        print(f"missed: REAP keeps {share} of the gain, of at least {arguments.least:.0%}")
        return 1
    return 0


def _holds(section: Section, key: str) -> bool:
    return any(key in point.keys for point in section.points)


if __name__ == "__main__":
    sys.exit(main())
