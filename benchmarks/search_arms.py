"""What is a search worth beside simpler ways to the same bytes?

    python -m benchmarks.search_arms model.path=FILE.gguf --jobs 4      # SmolLM2 on a GPU
    python -m benchmarks.search_arms --experiment search_llama          # the zoo's Llama, on a CPU: hours
    python -m benchmarks.search_arms --toy

For each seed and share of the dense model's bytes it makes four models: ``search`` is ``slimexp.search``; ``one_shot``
the solver's first solution from the same scores, not scored again as a whole, changed or tried; ``depth`` the model
without its blocks of least influence, as many as must go; ``uniform`` has all blocks, and in each the same number of
heads and neurons: of each number of heads the widest that fits, and of those the one that diverges least from dense on
the search's rows. All have the same number format (``--bits``; of several, the searches choose and the others take the
widest), are trained by the same last stage for ``--steps``, and are graded on the same rows. Scores are taken once a
seed. Further arguments are overrides of the searches and trainings, as ``search.uniform=false``.

Quality is the ratio to the dense model's perplexity (of other tasks, what is kept of the gain) before and after the
training, with 95 % intervals on the same rows. On a GPU the same training, of the same seed, ends elsewhere each time,
which these do not hold: small differences want several seeds. Seconds of choosing are those of all shares together,
after the scores; the search's hold its short and full trainings, those of ``depth`` loading the model. Prints Markdown,
writes ``RUNS/search_arms.json``; exits with status 1 where the search is worse than another arm on these rows.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command
from benchmarks.article import train_all
from benchmarks.run import Run
from benchmarks.simple_shapes import Simple
from slimexp.analysis.section import Section, load
from slimexp.candidate import trial
from slimexp.candidate.precision import FLOAT
from slimexp.candidate.report import answer
from slimexp.candidate.search import Search
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.config.schema import Search as Schema
from slimexp.pipeline import preflight
from slimexp.record import record

NAME = "search_arms"
ARMS = ("search", "one_shot", "depth", "uniform")
ONE_SHOT = ["search.solutions=1", "search.steps=0", "search.trials=1", "search.promoted=0"]
TRAINED = "distill"  # the stage that trains
TOY = [
    "trainer=fast", "model.max_length=64", "pipeline.cut.cut.calibration_batches=1", "pipeline.distill.batch_size=2",
    "search.rows=1", "search.graded=2", "search.heads=[]", "search.ffn=[0.5]", "search.hidden=[]",
    "search.solutions=2", "search.trials=2", "search.steps=1",
]  # fmt: skip


class Chosen(NamedTuple):
    """A model that an arm chose.

    Attributes:
        shape: What stays.
        overrides: By which a training makes it.
        seconds: That choosing took, of all shares together.
    """

    shape: str
    overrides: tuple[str, ...]
    seconds: float


class Figure(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Row(NamedTuple):
    """A model of an arm.

    Attributes:
        seed: Of everything.
        share: Of the dense model's bytes, at most.
        arm: Of ``ARMS``.
        shape: What stays.
        mb: MB on disk.
        of_dense: The same, of the dense model's.
        once: Quality beside dense before training; ``None`` where it is unknown.
        kept: The same after training.
        apart: What the search has of it less what this arm has; ``None`` for the search.
        worse: Whether that interval, on rows alone, leaves 0 out against the search.
        choosing: Seconds of choosing, of all shares together.
        training: Seconds of the training.
    """

    seed: int
    share: float
    arm: str
    shape: str
    mb: float
    of_dense: float
    once: Figure | None
    kept: Figure | None
    apart: Figure | None
    worse: bool
    choosing: float
    training: float


def words_of(seed: int, arguments: argparse.Namespace) -> list[str]:
    """Overrides of everything with a seed: what is trained, how long, and where."""
    own = [
        f"pipeline.{TRAINED}.steps={arguments.steps}",
        f"pipeline.{TRAINED}.lr_scheduler.num_warmup_steps={arguments.steps // 20}",
        f"measure.task.limit={arguments.rows}", f"search.bits=[{','.join(map(str, arguments.bits))}]",
        f"search.workers={arguments.jobs}", f"seed={seed}", f"runs={folder_of(seed, arguments)}", f"name={NAME}",
        "logger=none",
    ]  # fmt: skip
    toy = TOY if arguments.toy else []
    return [f"+experiment={arguments.experiment}", *toy, *own, *arguments.overrides]


def folder_of(seed: int, arguments: argparse.Namespace) -> Path:
    """Runs of a seed."""
    return Path(arguments.runs) / f"seed-{seed}"


def prepared(words: Sequence[str]) -> Search:
    """A search."""
    cfg = compose(words, "search")
    check(cfg, schema=Schema)
    return Search(cfg, preflight.training(cfg.copy()), words)


def searched(work: Search) -> list[Chosen]:
    """The best of each budget, and the seconds of a search whose scores are there.

    Raises:
        RuntimeError: Every training of a budget failed.
    """
    began = time.monotonic()
    found = work.run()
    seconds = time.monotonic() - began
    if work.settings.promoted and not all(one.promoted for one in found):
        raise RuntimeError(f"every training of a budget failed: see {work.folder}")
    best = [answer(one, work.parts.corpus.headline, work.parts.corpus.direction) for one in found]
    return [
        Chosen(str(one), tuple(trial.overrides(one, work.choices, work.stages, work.family)), seconds) for one in best
    ]


def choose(words: Sequence[str], arguments: argparse.Namespace) -> tuple[dict[tuple[float, str], Chosen], float, float]:
    """(Share, arm) -> its model; the seconds of scores, and the dense model's megabytes."""
    began = time.monotonic()
    simple = Simple.of(words, max(arguments.bits))
    limits = [share * simple.mb for share in arguments.shares]
    deep = [simple.depth(limit) for limit in limits]
    ranking = time.monotonic() - began
    budget = f"budget.disk_mb=[{','.join(map(str, limits))}]"
    work = prepared([*words, budget])
    began = time.monotonic()
    work.scorer.score(work.choices, work.scores)
    scoring = time.monotonic() - began
    began = time.monotonic()
    alike = [min(simple.uniform(limit), key=work.scorer.whole) for limit in limits]
    comparing = time.monotonic() - began
    found = {
        "one_shot": searched(prepared([*words, budget, *ONE_SHOT])),
        "search": searched(work),
        "depth": [Chosen(str(one), simple.overrides(one), ranking) for one in deep],
        "uniform": [Chosen(str(one), simple.overrides(one), comparing) for one in alike],
    }
    by = {(share, arm): found[arm][number] for number, share in enumerate(arguments.shares) for arm in ARMS}
    return by, scoring, simple.mb


def train(seed: int, arguments: argparse.Namespace) -> tuple[list[Row], float]:
    """All models of a seed, graded, and the seconds of its scores; trainings that the search has done are its own."""
    words, folder = words_of(seed, arguments), folder_of(seed, arguments)
    chosen, scoring, dense_mb = choose(words, arguments)
    line = trial.base(words)
    runs = {  # arms may choose the same
        one.overrides: Run.composed(f"{arm}, {share:.0%}, seed {seed}", [*line, *one.overrides])
        for (share, arm), one in chosen.items()
    }
    done = dict(zip(runs, train_all(list(runs.values()), folder, arguments.jobs, name="logs"), strict=True))
    keys = {of: done[one.overrides] for of, one in chosen.items()}
    return list(rows(seed, chosen, keys, folder, dense_mb)), scoring


def rows(
    seed: int,
    chosen: Mapping[tuple[float, str], Chosen],
    keys: Mapping[tuple[float, str], str],
    folder: Path,
    dense_mb: float,
) -> Iterator[Row]:
    """Every model of a seed with its figures; ``keys`` are those of the last stages."""
    records = {one.key: one for one in record.read(folder / record.FILE)}
    section = next(s for s in load(folder) if any(set(keys.values()) & set(point.keys) for point in s.points))
    place = {key: index for index, point in enumerate(section.points) for key in point.keys}
    for (share, arm), one in chosen.items():
        own = place[keys[share, arm]]
        before = place.get(records[keys[share, arm]].parent or "")
        beside = None
        if arm != "search":
            beside = section.comparisons.compare(place[keys[share, "search"]], own, section.quality)
        mb = section.points[own].value("disk_mb")
        yield Row(
            seed=seed,
            share=share,
            arm=arm,
            shape=one.shape,
            mb=mb,
            of_dense=mb / dense_mb,
            once=None if before is None else _figure(section, before),
            kept=_figure(section, own),
            apart=None if beside is None else Figure(beside.difference, beside.low, beside.high),
            worse=beside is not None and beside.worse,
            choosing=one.seconds,
            training=records[keys[share, arm]].seconds["train"],
        )


def _figure(section: Section, index: int) -> Figure | None:
    interval, value = section.comparisons.interval(index, section.quality), section.points[index].value(section.quality)
    return None if interval is None else Figure(value, interval.low, interval.high)


def table(found: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| bytes | seed | arm | MB | of dense | before training | after | search - arm | choosing, s | training, s |"
    ]
    lines.append("|---:|---:|---|---:|---:|---|---|---|---:|---:|")
    for row in sorted(found, key=lambda row: (-row.share, row.seed, ARMS.index(row.arm))):
        cells = [f"{row.share:.0%}", str(row.seed), row.arm, f"{row.mb:.2f}", f"{row.of_dense:.3f}x"]
        cells += [_words(row.once), _words(row.kept), _words(row.apart, "+")]
        lines.append(f"| {' | '.join(cells)} | {row.choosing:.0f} | {row.training:.0f} |")
    return "\n".join(lines)


def _words(figure: Figure | None, sign: str = "") -> str:
    return "" if figure is None else f"{figure.value:{sign}.4g} [{figure.low:{sign}.4g}, {figure.high:{sign}.4g}]"


def orders(found: Sequence[Row]) -> Iterator[str]:
    """The arms of each share with their means over seeds."""
    for share in dict.fromkeys(row.share for row in found):
        known = {
            arm: [row.kept.value for row in found if row.kept and (row.share, row.arm) == (share, arm)] for arm in ARMS
        }
        words = [
            f"{arm} {statistics.fmean(values):.4g}" if values else f"{arm} unknown" for arm, values in known.items()
        ]
        yield f"{share:.0%} of the bytes, means: {', '.join(words)}"


def missed(found: Sequence[Row]) -> list[str]:
    """Where the search is worse by an interval on rows that leaves 0 out."""
    return [f"seed {r.seed}, {r.share:.0%} of the bytes: worse than {r.arm} on its rows" for r in found if r.worse]


def main(given: Sequence[str] | None = None) -> int:
    """Train, grade and print; returns 1 where the search is worse than another arm on its rows."""
    parser = argparse.ArgumentParser("python -m benchmarks.search_arms", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--experiment", default="search_smollm2", help="the search's, whose last stage is distill")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.62], help="of the dense model's bytes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300, help="of the training")
    parser.add_argument("--rows", type=int, default=300, help="of the test split, that all are graded on")
    parser.add_argument("--bits", type=int, nargs="+", default=[FLOAT], help=f"of the weights; {FLOAT}: floats")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/search_arms"))
    parser.add_argument("--toy", action="store_true", help="the zoo's Llama, three steps, one share: does it run?")
    arguments: Any = command.parsed(parser, given)
    if arguments.toy:
        arguments.experiment, arguments.steps, arguments.rows = "search_llama", 3, 6
        arguments.shares, arguments.seeds = arguments.shares[:1], arguments.seeds[:1]
    found: list[Row] = []
    seconds = {}
    for seed in arguments.seeds:
        began = time.monotonic()
        own, scoring = train(seed, arguments)
        seconds[seed] = {"scores": scoring, "all": time.monotonic() - began}
        found += own
        print(f"\n{table(own)}\nseed {seed}: scores {scoring:.0f} s, all {seconds[seed]['all']:.0f} s", flush=True)
    faults = missed(found)
    content = {"rows": [row._asdict() for row in found], "seconds": seconds, "missed": faults}
    path = arguments.runs / f"{NAME}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print("\n".join(["", table(found), "", *orders(found), f"-> {path}", *(f"missed: {fault}" for fault in faults)]))
    return int(bool(faults) and not arguments.toy)


if __name__ == "__main__":
    sys.exit(main())
