"""How small, how fast and how good does the article's case get, over seeds, and beside the dense model trained as long?

    python -m benchmarks.article model=gguf model.path=SmolLM2-135M-Instruct.Q4_1.gguf --jobs 6
    python -m benchmarks.article model=llama_python_source --of float32 --most 8=0.20 4=0.12 --least-speed 8=3 4=0
    python -m benchmarks.article --experiment slim_seq2seq model=t5_spelling --of float32 --most 8=0.20 4=0.12
    python -m benchmarks.article --toy

Per width of the integers and seed it trains ``+experiment=slim_deepseek``; then the dense model by itself on as many
rows of the same text (``--no-control`` leaves it out), since a small model that was trained on what it is graded on
may beat one that was not. Runs go side by side up to ``--jobs``, on one GPU after the other. Speed is measured
afterwards, with nothing beside it, on the runs of the first seed: tokens per second while decoding, and those of the
dense model in the same loop. Further arguments are overrides of every run.

Quality is the dense model's figure over the model's own (perplexities, or errors), on the same rows. Differences stand
with paired 95 % intervals over rows, and in the mean with Student's t over seeds. Bytes are those on the disk, of the
dense model's in bfloat16 (``--of float32``: in float32). Prints Markdown, writes ``RUNS/article.json``; exits with
status 1 where a mean misses a target: ``--most`` of the bytes, ``--least`` of the quality, ``--least-speed`` of dense.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command, workers
from benchmarks.interval import t_interval
from benchmarks.run import Run, headline, teacher_terms
from slimexp.record import record
from slimexp.record.record import Record
from slimexp.record.schema import DIFFERENCE

CONTROL = "dense, trained as long"
TRAINED = "distill"  # the stage that trains
SPEED = "decode_tokens_per_s"
BYTES = {"bfloat16": 1.0, "float32": 2.0}  # of the dense model, in its own
TOY = [
    "model=llama_python_source", "model.max_length=64", "trainer=fast", "measure.task.limit=6", "logger=none",
    "pipeline.prune_structured.rows=1", "pipeline.prune_structured.importance.rows=2",
    "pipeline.distill.steps=3", "pipeline.distill.batch_size=2", "pipeline.calibrate.steps=1",
    "pipeline.calibrate.batch_size=2",
]  # fmt: skip


class Arm(NamedTuple):
    """A way to make a model, and what it must be.

    Attributes:
        name: In tables.
        overrides: What sets it apart.
        most: Bytes, as a share of the dense model's; ``None`` for no target.
        least: Quality, as a share of the dense model's.
        speed: Tokens per second, in those of the dense model.
    """

    name: str
    overrides: tuple[str, ...]
    most: float | None = None
    least: float | None = None
    speed: float | None = None


class Result(NamedTuple):
    """What an arm came to.

    Attributes:
        arm: The arm.
        rows: Records of its last stage, one a seed.
        timed: The record that holds its speed; ``None`` where that was not measured.
    """

    arm: Arm
    rows: list[Record]
    timed: Record | None

    @property
    def bytes(self) -> float:
        """A share of the dense model's, as that lies on the disk."""
        return statistics.fmean(row.metrics["disk_mb"] / row.baseline["disk_mb"] for row in self.rows)

    @property
    def quality(self) -> float:
        """A share of the dense model's."""
        return statistics.fmean(_quality(row) for row in self.rows)

    @property
    def speed(self) -> float | None:
        """In the dense model's, in the same loop at the same time."""
        if self.timed is None:
            return None
        return self.timed.metrics[SPEED] / self.timed.metrics[f"{SPEED}_dense"]


def _quality(row: Record) -> float:
    own, dense = headline(row), row.baseline[row.headline]
    return dense / own if row.direction == "min" else own / dense


def planned(arm: Arm, seed: int, measures: str, arguments: argparse.Namespace) -> Run:
    """The run of an arm with a seed."""
    chosen = [
        f"+experiment={arguments.experiment}",
        *(TOY if arguments.toy else []),
        *arguments.overrides,
        *arm.overrides,
    ]
    own = [f"measure=[{measures}]", f"seed={seed}", f"runs={arguments.runs}", "name=article"]
    return Run.composed(f"{arm.name}, seed {seed}", [*chosen, *own])


def control(first: Run) -> Arm:
    """The dense model, trained from labels on as many rows as all stages of a run, at the rate of distilling."""
    steps = sum(stage.steps * stage.accumulate for stage in first.cfg.pipeline.values())
    gone = [f"~pipeline.{stage}" for stage in first.cfg.pipeline if stage != TRAINED]
    of_teacher = [term for term in teacher_terms(first.cfg) if term.startswith(f"~pipeline.{TRAINED}.")]
    alone = [f"pipeline.{TRAINED}.steps={steps}", f"pipeline.{TRAINED}.losses.ce.weight=1"]
    return Arm(CONTROL, (*alone, *of_teacher, *gone))


def train(run: Run, log: Path) -> str:
    """Train and measure in this worker; returns the key of the last stage."""
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        key = run.train_here()
    print(f"{run.label}: {time.monotonic() - began:.0f} s", flush=True)
    return key


def train_all(runs: Sequence[Run], folder: Path, jobs: int, kind: str = "", *, name: str = "article") -> list[str]:
    """Train side by side, as many as ``jobs``, each on the GPU that is next; returns the keys of the last stages.

    What they print goes to ``folder/name``.
    """
    logs = [folder / name / f"{run.label.replace(', ', '-').replace(' ', '-')}{kind}.log" for run in runs]
    with workers.processes(jobs) as pool:
        return list(pool.map(train, runs, logs))


def results(arms: Sequence[Arm], arguments: argparse.Namespace) -> Iterator[Result]:
    """Train and measure every arm with every seed."""
    folder, graded = Path(arguments.runs), f"size,task{',lm_eval' if arguments.lm_eval else ''}"
    runs = {(arm, seed): planned(arm, seed, graded, arguments) for seed in arguments.seeds for arm in arms}
    if arguments.control:
        own = control(next(iter(runs.values())))
        runs |= {(own, seed): planned(own, seed, graded, arguments) for seed in arguments.seeds}
    first, *others = runs.values()
    keys = train_all([first], folder, 1)  # the dense model is made and measured once
    keys += train_all(others, folder, arguments.jobs) if others else []
    again = [planned(arm, arguments.seeds[0], f"{graded},latency", arguments) for arm in arms]
    timed = dict(zip(arms, train_all(again, folder, 1, "-speed"), strict=True))
    records = {one.key: one for one in record.read(folder / record.FILE)}
    of_run = dict(zip(runs, keys, strict=True))
    for arm in dict.fromkeys(arm for arm, _ in runs):
        rows = [records[of_run[arm, seed]] for seed in arguments.seeds]
        yield Result(arm, rows, records[timed[arm]] if arm in timed else None)


def table(of: Sequence[Result], scale: float) -> str:
    """Markdown: a row for each model and one for the mean of an arm."""
    first = of[0].rows[0]
    name, dense = first.headline, first.baseline
    titles = ["model", "seed", name, "minus dense", "quality", "MB", "bytes", "tokens/s", "of dense"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    lines.append(["dense", "", f"{dense[name]:.4f}", "", "", f"{dense['disk_mb']:.1f}", "", "", ""])
    for result in of:
        for row in result.rows:
            figures = [f"{headline(row):.4f}", _paired(row), f"{_quality(row):.3f}", f"{row.metrics['disk_mb']:.1f}"]
            lines.append([result.arm.name, str(row.seed), *figures, "", "", ""])
        mean = statistics.fmean(map(headline, result.rows))
        between = t_interval([headline(row) - row.baseline[name] for row in result.rows])
        speeds = ["", ""]
        if result.timed is not None and result.speed is not None:
            speeds = [f"{result.timed.metrics[SPEED]:.0f}", f"{result.speed:.2f}x"]
        spread = f"{between.mean:+.4f} [{between.low:+.4f}, {between.high:+.4f}]"
        share = f"{result.bytes / scale:.2f}x"
        lines.append(
            [f"{result.arm.name}, mean", "", f"{mean:.4f}", spread, f"{result.quality:.3f}", "", share, *speeds]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _paired(row: Record) -> str:
    """The difference from the dense model on the same rows."""
    name = row.headline + DIFFERENCE
    if name not in row.metrics:
        return ""
    return f"{row.metrics[name]:+.4f} [{row.metrics[f'{name}_low']:+.4f}, {row.metrics[f'{name}_high']:+.4f}]"


def missed(of: Sequence[Result], scale: float) -> list[str]:
    """Targets that a mean misses."""
    faults = []
    for result in of:
        arm = result.arm
        if arm.most is not None and result.bytes / scale > arm.most:
            faults.append(f"{arm.name}: {result.bytes / scale:.3f}x of the bytes, of at most {arm.most:g}x")
        if arm.least is not None and result.quality < arm.least:
            faults.append(f"{arm.name}: {result.quality:.3f} of the quality, of at least {arm.least:g}")
        if arm.speed is not None and result.speed is not None and result.speed < arm.speed:
            faults.append(f"{arm.name}: {result.speed:.2f}x as fast, of at least {arm.speed:g}x")
    return faults


def written(of: Sequence[Result]) -> dict[str, Any]:
    """Everything the table shows and where it came from."""
    last = of[-1].rows[-1]
    return {
        "arms": [
            {
                "name": result.arm.name,
                "overrides": result.arm.overrides,
                "bytes": result.bytes,
                "quality": result.quality,
                "speed": result.speed,
                "seeds": [{"seed": row.seed, "key": row.key, "metrics": row.metrics} for row in result.rows],
            }
            for result in of
        ],
        "dense": last.baseline,
        "git": last.git,
        "versions": last.versions,
        "hardware": last.hardware,
    }


def _of_width(text: str) -> tuple[int, float]:
    bits, _, value = text.partition("=")
    return int(bits), float(value)


def arms(arguments: argparse.Namespace) -> list[Arm]:
    """An arm for each width of the integers, with its targets."""
    most, least, speed = (dict(pairs) for pairs in (arguments.most, arguments.least, arguments.least_speed))

    def target(of: Mapping[int, float], bits: int) -> float | None:
        return None if arguments.toy else of.get(bits)

    return [
        Arm(
            f"int{bits}",
            (f"pipeline.quantize.bits={bits}",),
            target(most, bits),
            target(least, bits),
            target(speed, bits),
        )
        for bits in arguments.bits
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="slim_deepseek")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--of", choices=BYTES, default="bfloat16", help="type that bytes of dense are counted in")
    parser.add_argument("--lm-eval", action="store_true", help="tasks of lm-evaluation-harness as well")
    parser.add_argument("--no-control", dest="control", action="store_false")
    for option, default in (
        ("--most", ["8=0.40", "4=0.24"]),
        ("--least", ["8=1", "4=0.97"]),
        ("--least-speed", ["4=1.6"]),
    ):
        parser.add_argument(option, type=_of_width, nargs="*", default=[_of_width(text) for text in default])
    parser.add_argument("--toy", action="store_true", help="one seed, three steps: does it run?")
    arguments = command.parsed(parser)
    if arguments.toy:
        arguments.seeds = [0]
    found = list(results(arms(arguments), arguments))
    path = Path(arguments.runs) / "article.json"
    path.write_text(json.dumps(written(found), indent=2) + "\n")
    scale = BYTES[arguments.of]
    print(f"\n{table(found, scale)}\n-> {path}")
    if faults := missed(found, scale):
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
