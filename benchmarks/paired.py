"""Which points of a front can be told apart, and do the intervals hold what they say?

    python -m benchmarks.paired                # coverage alone, two minutes on 2 cores
    python -m benchmarks.paired --runs runs    # also the pairs of points of the fronts in a runs folder

**Told apart** is the share of pairs whose 95 % interval of the difference in the headline leaves out 0: by the error
bar of each model ("unpaired"), by the differences of both from dense ("from dense"), and drawn on the same rows
("paired").

**Coverage** is the share of draws of new rows, and of new seeds where there are several, in which the interval holds
the true difference, which the simulation knows: it has to be 93 to 97 % of 2,000 draws. A row is hard for all models
alike, and each model errs on it by chance besides. Prints Markdown; the exit status is 1 where an interval does not
hold.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slimexp.analysis.comparison import Comparison, Comparisons
from slimexp.analysis.point import Point, Spread
from slimexp.analysis.section import Section, load, sections
from slimexp.analysis.uncertainty import standard_error
from slimexp.data.rows import MacroF1, Rows
from slimexp.record import record
from slimexp.record.figures import KEPT

LEAST, MOST = 0.93, 0.97
DRAWS, ROWS = 2000, 300
METRIC, GUESS = "figure", 1.0
_CLASSES = 5
_TRUTH = 2_000_000  # rows that stand for all there are, where no formula gives the truth

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator], tuple[list[Rows], list[Rows]]]


class Case(NamedTuple):
    """What is simulated.

    Attributes:
        name: In the table.
        draw: Draws the results of the dense model and of another, one for each seed.
        truth: The true difference.
        metric: The figure that is compared.
    """

    name: str
    draw: Draw
    truth: float
    metric: str = METRIC


class Coverage(NamedTuple):
    """How often the intervals of a case held.

    Attributes:
        paired: Share of draws in which that on the same rows held the truth.
        width: Its mean width.
        unpaired: The same share, of error bars of single models.
        unpaired_width: Their mean width.
    """

    paired: float
    width: float
    unpaired: float
    unpaired_width: float


def pairs(section: Section, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of points whose headline was measured."""
    measured = [index for index in indices if section.headline in section.points[index].figures]
    return combinations(measured, 2)


def told_apart(compared: Comparisons, section: Section, indices: Sequence[int]) -> float:
    """Share of pairs that are separable by the headline; a pair whose errors are unknown is not."""
    found = [compared.compare(*pair, section.headline) for pair in pairs(section, indices)]
    return float(np.mean([one is not None and one.separable for one in found])) if found else float("nan")


def fronts(runs: Path) -> Iterator[str]:
    """The table of the fronts in a runs folder."""
    yield "| corpus | points | pairs | unpaired | from dense | paired |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for section, without in zip(load(runs), sections(record.read(runs, quiet=True)), strict=True):
        alone = unpaired(section.points)
        for name, indices in {"front": section.front, "all": range(len(section.points))}.items():
            shares = [told_apart(way, section, indices) for way in (alone, without.comparisons, section.comparisons)]
            count = len(list(pairs(section, indices)))
            yield f"| {section.title} | {name} | {count} | " + " | ".join(f"{100 * one:.0f} %" for one in shares) + " |"


def unpaired(points: Sequence[Point]) -> Comparisons:
    """How points compare by their own error bars alone."""
    nobody: list[int | None] = [None] * len(points)
    return Comparisons(points, better=lambda _: "min", dense=nobody, rows=lambda *_: (), headline="", guess=0.0)


def coverage(case: Case, draws: int, seed: int = 0) -> Coverage:
    """Draw new rows and seeds, and see how often the intervals hold the truth."""
    found: list[tuple[Comparison, Comparison]] = []
    for chance in np.random.default_rng(seed).spawn(draws):
        results = case.draw(chance)
        points = [point(rows, results[0], dense=not place) for place, rows in enumerate(results)]
        own = Comparisons(
            points,
            better=lambda _: "min",
            dense=[0, 0],
            rows=lambda of, _, results=results: results[not of.dense],
            headline=METRIC,
            guess=GUESS,
        )
        both = own.compare(1, 0, case.metric), unpaired(points).compare(1, 0, case.metric)
        assert both[0] is not None and both[1] is not None
        assert both[0].basis == "rows"
        found.append(both)  # type: ignore[arg-type]
    held = np.array([[one.low <= case.truth <= one.high for one in both] for both in found])
    widths = np.array([[one.high - one.low for one in both] for both in found])
    return Coverage(held[:, 0].mean(), widths[:, 0].mean(), held[:, 1].mean(), widths[:, 1].mean())


def point(results: Sequence[Rows], whole: Sequence[Rows], *, dense: bool) -> Point:
    """A point of these results, one for each seed, with its own error bars, beside the dense model's."""
    figures, gain = [rows.figure for rows in results], GUESS - float(np.mean([rows.figure for rows in whole]))
    errors = [float(np.sqrt((rows.influence() ** 2).sum())) for rows in results]
    error = standard_error(figures, errors)
    spread = Spread(float(np.mean(figures)), min(figures), max(figures), error, len(figures))
    kept = [(GUESS - figure) / gain for figure in figures]
    alone = 0.0 if dense else (error or 0.0) / gain
    shown = {METRIC: spread, KEPT: Spread(float(np.mean(kept)), min(kept), max(kept), alone, len(figures))}
    return Point("", (), dense, tuple(range(len(figures))), shown, {}, (), (), (), "")


def cases(rows: int = ROWS) -> list[Case]:
    """Every kind of figure with one seed, and error rates with several."""
    questions = np.arange(rows, dtype=np.uint64)
    log_sd, rate, factor = 1.0, 0.03, 1.2

    def edits(chance: np.random.Generator, factors: Sequence[Array]) -> tuple[list[Rows], list[Rows]]:
        lengths = chance.integers(20, 100, rows).astype(float)
        hard = rate * np.exp(log_sd * chance.standard_normal(rows) - log_sd**2 / 2)

        def model(own: Array) -> list[Rows]:
            luck = chance.gamma(4, 0.25, rows)  # of this model on a row, whatever its seed
            return [Rows(questions, chance.poisson(lengths * hard * luck * of).astype(float), lengths) for of in own]

        return model(factors[0]), model(factors[1])

    def seeded(dense: int, own: int, spread: float) -> Draw:
        return lambda chance: edits(
            chance, [1 + spread * chance.standard_normal(dense), factor + spread * chance.standard_normal(own)]
        )

    def surprise(chance: np.random.Generator) -> tuple[list[Rows], list[Rows]]:
        tokens = chance.integers(10, 60, rows).astype(float)
        hard = 2 + 0.6 * chance.standard_normal(rows)
        nats = [(hard + more + 0.15 * chance.standard_normal(rows)) * tokens for more in (0.0, 0.05)]
        dense, own = (Rows(questions, one, tokens, exponential=True) for one in nats)
        return [dense], [own]

    def answers(chance: np.random.Generator) -> tuple[list[Rows], list[Rows]]:
        ease = chance.beta(2, 1, rows)
        dense, own = (
            Rows(questions, (chance.random(rows) < ease**power).astype(float), np.ones(rows)) for power in (1.0, 1.2)
        )
        return [dense], [own]

    def labels(chance: np.random.Generator, count: int = rows) -> tuple[list[Rows], list[Rows]]:
        true = chance.choice(_CLASSES, count, p=[0.4, 0.3, 0.15, 0.1, 0.05])
        ease, confused = chance.beta(3, 1, count), chance.integers(_CLASSES, size=count)
        numbers = np.arange(count, dtype=np.uint64)
        guesses = [np.where(chance.random(count) < ease**power, true, confused) for power in (1.0, 1.5)]
        dense, own = (MacroF1(numbers, guess.astype(float), true.astype(float)) for guess in guesses)
        return [dense], [own]

    (dense,), (own,) = labels(np.random.default_rng(1), _TRUTH)
    more = rate * (factor - 1)
    kept = (GUESS - rate * factor) / (GUESS - rate) - 1
    levels = ((1, 3, 0.0), (3, 3, 0.0), (3, 3, 0.05), (3, 3, 0.2), (5, 5, 0.05))
    several = [
        Case(f"error rate, {first} and {second} seeds that spread by {spread:.0%}", seeded(first, second, spread), more)
        for first, second, spread in levels
    ]
    return [
        Case("error rate", seeded(1, 1, 0.0), more),
        Case("retention of it", seeded(1, 1, 0.0), kept, KEPT),
        Case("perplexity", surprise, float(np.exp(2.05) - np.exp(2.0))),
        Case("accuracy", answers, 2 / (2 + 1.2) - 2 / 3),
        Case("macro F1", labels, own.figure - dense.figure),
        *several,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns 1 where a coverage is out of range."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paired", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="a runs folder whose fronts are looked at")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"simulated data sets of each case (default {DRAWS})")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of each (default {ROWS})")
    options = parser.parse_args(arguments)
    if options.runs:
        print("\n".join(fronts(options.runs)), end="\n\n")
    print(f"| figure, {options.rows} rows | paired | width | unpaired | width |\n| --- | ---: | ---: | ---: | ---: |")
    held = True
    for case in cases(options.rows):
        found = coverage(case, options.draws)
        within = LEAST <= found.paired <= MOST
        held &= within
        print(
            f"| {case.name} | {100 * found.paired:.1f} %{'' if within else ' (!)'} | {found.width:.3g} "
            f"| {100 * found.unpaired:.1f} % | {found.unpaired_width:.3g} |",
            flush=True,
        )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
