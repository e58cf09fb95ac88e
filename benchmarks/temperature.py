"""Does a temperature that falls teach more than the best fixed one?

    python -m benchmarks.temperature                                  # the zoo's T5, 58 % of its parameters
    python -m benchmarks.temperature --experiment distill_t5_tenth --workers 4
    python -m benchmarks.temperature --toy                            # one seed, two steps: does it run?

Every seed trains the student of ``--experiment`` at each fixed temperature of ``--fixed``, and at one that falls from
``--annealed``, linearly, along a cosine and by a constant ratio: the same student from the same start on the same
batches. The validation split chooses the best fixed temperature and the best curve; the test split, which chooses
nothing, says how far they are apart. "Worse by" is the paired difference in the headline, seed by seed, from the fixed
temperature that was chosen, with Student's 95 % interval.

``--stage`` and ``--loss`` name the divergence whose temperature is set. Further arguments are overrides of all runs.
Finished stages are kept. Prints Markdown, and writes ``RUNS/NAME.json``.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command, workers
from benchmarks.interval import CONFIDENCE, Interval, t_interval
from benchmarks.run import Run, headline
from slimexp.record import record
from slimexp.record.record import Record

FIXED, ANNEALED = "fixed", "annealed"
CURVES = ("linear", "cosine", "exponential")
VALIDATION, TEST = "validation", "test"


class Arm(NamedTuple):
    """One way to train the student.

    Attributes:
        name: In tables.
        kind: Of arms of a kind the best is chosen.
        overrides: What sets it apart.
    """

    name: str
    kind: str
    overrides: tuple[str, ...]


class Result(NamedTuple):
    """Records of an arm, one a seed.

    Attributes:
        validation: Measured on the validation split.
        test: The same models on the test split.
    """

    validation: list[Record]
    test: list[Record]


def arms(stage: str, loss: str, fixed: Sequence[float], annealed: Sequence[float]) -> list[Arm]:
    """Fixed temperatures, and curves from the first number of ``annealed`` to the second."""
    place = f"pipeline.{stage}.losses.{loss}.temperature"

    def between(start: float, end: float) -> tuple[str, ...]:
        return f"{place}.start={start:g}", f"{place}.end={end:g}"

    start, end = annealed
    return [
        *(Arm(f"T = {value:g}", FIXED, between(value, value)) for value in fixed),
        *(
            Arm(f"T = {start:g} to {end:g}, {curve}", ANNEALED, (f"schedule@{place}={curve}", *between(start, end)))
            for curve in CURVES
        ),
    ]


def line(arm: Arm, seed: int, split: str, arguments: argparse.Namespace) -> list[str]:
    """The command line of a run."""
    return [
        f"+experiment={arguments.experiment}", "measure=[size,task]", "logger=none",
        "trainer.enable_progress_bar=false", *arm.overrides, *arguments.overrides, f"measure.task.split={split}",
        f"seed={seed}", f"runs={arguments.runs}", f"name={arguments.name}",
    ]  # fmt: skip


def run(lines: Sequence[Sequence[str]]) -> str:
    """Runs of one training, each of which measures anew, in a worker; returns the key of their last stage."""
    (key,) = {Run.composed(" ".join(words), words).train_here() for words in lines}
    return key


def results(of: Sequence[Arm], arguments: argparse.Namespace) -> dict[Arm, Result]:
    """Train and measure every arm with every seed."""
    plan = [(arm, seed) for seed in arguments.seeds for arm in of]
    lines = [[line(arm, seed, split, arguments) for split in (VALIDATION, TEST)] for arm, seed in plan]
    with workers.processes(arguments.workers) as pool:
        keys = dict(zip(plan, pool.map(run, lines), strict=True))
    written = record.written(arguments.runs / record.FILE, quiet=True)
    found = {(one.key, one.config["measure"]["task"]["split"]): one for one in written}
    return {
        arm: Result(*([found[keys[arm, seed], split] for seed in arguments.seeds] for split in (VALIDATION, TEST)))
        for arm in of
    }


def headlines(records: Sequence[Record]) -> list[float]:
    """The figure of each record's headline."""
    return [headline(one) for one in records]


def best(of: Mapping[Arm, Result], kind: str) -> Arm:
    """The arm of a kind with the best mean on the validation split."""
    sign = _sign(next(iter(of.values())))
    means = {arm: sign * statistics.fmean(headlines(result.validation)) for arm, result in of.items()}
    return min((arm for arm in of if arm.kind == kind), key=means.__getitem__)


def worse(result: Result, reference: Result) -> Interval:
    """How much worse an arm's headline on the test split is than another's, seed by seed."""
    pairs = zip(headlines(result.test), headlines(reference.test), strict=True)
    return t_interval([_sign(result) * (own - other) for own, other in pairs])


def table(of: Mapping[Arm, Result], reference: Arm, chosen: Sequence[Arm]) -> str:
    """Markdown: every arm beside the reference; those that validation chose are bold."""
    first = of[reference].test[0]
    lines = [f"| student | {first.headline}, validation | test | worse by | 95 % interval | seeds |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for arm, result in of.items():
        name = f"**{arm.name}**" if arm in chosen else arm.name
        cells = [name, *(_spread(headlines(records)) for records in result)]
        difference = worse(result, of[reference])
        cells += ["", ""] if arm == reference else [f"{difference.mean:+.4f}", _interval(difference)]
        lines.append(f"| {' | '.join([*cells, str(len(result.test))])} |")
    dense = f"dense {first.baseline[first.headline]:.4f}"
    return "\n".join([*lines, "", f"{dense}, without a model {first.trivial:.4f} ({first.headline}, test)"])


def verdict(of: Mapping[Arm, Result], arm: Arm, reference: Arm) -> str:
    """One line on two arms that validation chose."""
    difference = worse(of[arm], of[reference])
    word = "better" if difference.high < 0 else "worse" if difference.low > 0 else "not told apart"
    seeds = len(of[arm].test)
    return (
        f"{arm.name} against {reference.name}: {difference.mean:+.4f} {of[arm].test[0].headline} (+ is worse), "
        f"{CONFIDENCE:.0%} interval {_interval(difference)}, {seeds} paired seeds: {word}"
    )


def outcome(
    of: Mapping[Arm, Result], reference: Arm, chosen: Sequence[Arm], overrides: Sequence[str]
) -> dict[str, Any]:
    """Everything that the table shows, and where it came from."""
    last = of[reference].test[-1]
    rows = [
        {
            "name": arm.name,
            "kind": arm.kind,
            "overrides": arm.overrides,
            "seeds": [one.seed for one in result.test],
            "keys": [one.key for one in result.test],
            **{split: headlines(records) for split, records in result._asdict().items()},
            "worse": worse(result, of[reference])._asdict(),
        }
        for arm, result in of.items()
    ]
    return {
        "headline": last.headline,
        "reference": reference.name,
        "chosen": [arm.name for arm in chosen],
        "arms": rows,
        "overrides": list(overrides),
        "git": last.git,
        "versions": last.versions,
        "hardware": last.hardware,
    }


def parser(description: str | None, *, experiment: str, name: str, seeds: int) -> argparse.ArgumentParser:
    """Arguments of a comparison of arms."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--experiment", default=experiment)
    made.add_argument("--stage", default="distill", help="stage of the experiment that distils")
    made.add_argument("--loss", default="kl", help="name of its divergence, as in the stage's losses")
    made.add_argument("--seeds", type=int, nargs="+", default=list(range(seeds)))
    made.add_argument("--workers", type=int, default=1, help="runs at a time, on one GPU after the other")
    made.add_argument("--runs", type=Path, default=Path("runs"))
    made.add_argument("--name", default=name, help="of the runs' folder and the JSON file below --runs")
    made.add_argument("--toy", action="store_true", help="one seed, two steps, a few rows")
    return made


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Arguments of the command line; what is none of them is an override."""
    arguments = command.parsed(made)
    if arguments.toy:
        arguments.seeds = arguments.seeds[:1]
        few = [f"pipeline.{arguments.stage}.{key}" for key in ("steps=2", "batch_size=4")]
        arguments.overrides = ["measure.task.limit=4", *few, *arguments.overrides]
    return arguments


def report(of: Mapping[Arm, Result], reference: Arm, chosen: Sequence[Arm], arguments: argparse.Namespace) -> None:
    """Print table and verdicts, and write the JSON file."""
    path = arguments.runs / f"{arguments.name}.json"
    content = outcome(of, reference, chosen, [f"+experiment={arguments.experiment}", *arguments.overrides])
    path.write_text(json.dumps(content, indent=2) + "\n")
    verdicts = [verdict(of, arm, reference) for arm in chosen if arm != reference]
    print("\n".join(["", table(of, reference, chosen), "", *verdicts, f"-> {path}"]), flush=True)


def _sign(result: Result) -> int:
    """1 where a smaller headline is better, else -1."""
    return 1 if result.test[0].direction == "min" else -1


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _interval(of: Interval) -> str:
    return f"[{of.low:+.4f}, {of.high:+.4f}]"


def main() -> None:
    made = parser(__doc__, experiment="distill_t5", name="temperature", seeds=5)
    made.add_argument("--fixed", type=float, nargs="+", default=[1, 2, 3, 4, 5, 8])
    made.add_argument("--annealed", type=float, nargs=2, default=[5, 1], metavar=("START", "END"))
    arguments = parsed(made)
    if min(*arguments.fixed, *arguments.annealed) <= 0:
        sys.exit("temperatures must be > 0")
    found = results(arms(arguments.stage, arguments.loss, arguments.fixed, arguments.annealed), arguments)
    chosen = [best(found, FIXED), best(found, ANNEALED)]
    report(found, chosen[0], chosen, arguments)


if __name__ == "__main__":
    main()
