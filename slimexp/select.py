"""Name the model that fits a budget: ``python -m slimexp.select runs max_size_mb=8 min_exact_match=0.5``.

Of a language model, ``max_perplexity_ratio=1.1`` allows 1.1 times the dense model's perplexity.

Budgets are ``max_METRIC=NUMBER`` and ``min_METRIC=NUMBER``, of any figure in the records. Among the models that keep
all of them the one with the best headline is named, of equals the smallest; where none does, the nearest one.

Each corpus has its own answer. A corpus where no model has a figure of the budgets, or the headline, is reported as
not asked and does not count. The exit status is 0 where every other corpus has a model that fits, 1 where one has none
or no corpus is left, 2 after an error.

``export=onnx`` then writes the model that fits in a format of ``slimexp.export``, which compares it with PyTorch:
``export.KEY=VALUE`` sets an option of the format, ``out=FOLDER`` where to. A model that does not fit is not exported.
"""

import argparse
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from slimexp.analysis.front import errors_of
from slimexp.analysis.point import Point
from slimexp.analysis.section import Section, load
from slimexp.analysis.style import number
from slimexp.analysis.uncertainty import DECIDED, probability_dominated
from slimexp.host import console
from slimexp.host.progress import working

SHORT = {"size_mb": "disk_mb", "latency_ms": "latency_p50_ms", "params": "params_live"}
NONE_FITS = 1


@dataclass(frozen=True)
class Budget:
    """A limit of one metric.

    Attributes:
        metric: Name of the metric.
        at_most: Whether the limit is an upper one.
        limit: The largest value that fits, or the smallest one.
    """

    metric: str
    at_most: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read ``max_size_mb=8``.

        Raises:
            ValueError: The text is no such budget.
        """
        name, _, value = text.partition("=")
        side, _, metric = name.partition("_")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if side not in ("max", "min") or not metric or not math.isfinite(limit):
            rule = f"a budget must be max_METRIC=NUMBER or min_METRIC=NUMBER, got '{text}'"
            if side in ("max", "min") or not name or not math.isfinite(limit):
                raise ValueError(rule)
            close = [name] if name in SHORT.values() else get_close_matches(name, SHORT, n=1) or [name]
            raise ValueError(f"{rule}: write max_{close[0]}={value} or min_{close[0]}={value}")
        return cls(SHORT.get(metric, metric), side == "max", limit)

    def excess(self, value: float) -> float:
        """Distance of ``value`` beyond the limit, as a share of it: at most 0 within, infinite for NaN."""
        if math.isnan(value):
            return math.inf
        over = value - self.limit if self.at_most else self.limit - value
        return over / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {number(self.limit)}"


class Choice(NamedTuple):
    """The model of one section.

    Attributes:
        point: The model; ``None`` where no model has every metric of the budgets.
        fits: Whether it is within every budget.
        rivals: Other models that fit, and that the errors of the headline do not separate from it.
    """

    point: Point | None
    fits: bool
    rivals: tuple[Point, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where a corpus has no model that fits, 2 after an error."""
    with console.output(), console.interruptible():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = console.Parser(
        "python -m slimexp.select", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=console.path, help="folder with records.jsonl somewhere below, or one such file")
    parser.add_argument("budgets", nargs="*", metavar="max_METRIC=NUMBER", help="also export=FORMAT and out=FOLDER")
    options = parser.parse_args(arguments)
    about_export = [text for text in options.budgets if re.match(r"(export(\.\w+)?|out)=", text)]
    try:
        budgets = [Budget.parse(text) for text in options.budgets if text not in about_export]
        settings = _export_settings(about_export)
        with working("reading the records"):
            sections = load(options.runs)
        _check(budgets, sections)
    except (ValueError, OSError) as error:
        print(f"error: {console.printable(error)}", file=sys.stderr)
        return console.USER_ERROR
    folder = options.runs if options.runs.is_dir() else options.runs.parent
    measured = [section for section in sections if not _unmeasured(section, budgets)]
    choices = [choose(section, budgets) for section in measured]
    answers = ["\n".join(_answer(*pair, budgets, folder)) for pair in zip(measured, choices, strict=True)]
    for section in sections:
        if absent := _unmeasured(section, budgets):
            answers.append(f"{section.title}: not asked, no model there has {', '.join(absent)}")
    print("\n\n".join(answers))
    if not (choices and all(choice.fits for choice in choices)):
        if settings:
            print("\nnothing is exported")
        return NONE_FITS
    try:
        return _export(choices, folder, settings) if settings else 0
    except ValueError as error:
        print(f"error: {console.printable(error)}", file=sys.stderr)
        return console.USER_ERROR


def choose(section: Section, budgets: Sequence[Budget]) -> Choice:
    """The best model within ``budgets``, or the nearest one outside them."""
    sign = 1.0 if section.direction == "min" else -1.0

    def excess(point: Point) -> float:
        return max([0.0, *(budget.excess(point.value(budget.metric)) for budget in budgets)])

    def cost(point: Point) -> tuple[float, float, float]:
        return excess(point), sign * point.value(section.headline), point.value("disk_mb", math.inf)

    points = [p for p in section.points if math.isfinite(excess(p)) and not math.isnan(p.value(section.headline))]
    point = min(points, key=cost, default=None)
    within = sorted((candidate for candidate in points if excess(candidate) <= 0), key=cost)
    return Choice(point, bool(within), _rivals(within, section))


def _export_settings(given: Sequence[str]) -> list[str]:
    """What ``slimexp.export`` is told: ``export=onnx`` becomes ``format=onnx``; nothing where nothing is exported.

    Raises:
        ValueError: There is no such format, or a setting is none.
    """
    if not given:
        return []
    from slimexp.export import settings

    if not any(text.startswith("export=") for text in given):
        raise ValueError(f"'{given[0]}' is of an export, and none is asked for: add export=FORMAT")
    words = [re.sub(r"^export", "format", text) for text in given]
    settings(words)
    return words


def _export(choices: Sequence[Choice], folder: Path, settings: Sequence[str]) -> int:
    """Write an artifact of every model that was chosen, and have it compared; returns the exit status.

    Raises:
        ValueError: One has none on the disk, or several would be written to one folder; nothing is written then.
    """
    from slimexp.export import main as export

    if len(choices) > 1 and any(text.startswith("out=") for text in settings):
        raise ValueError(
            f"{len(choices)} corpora have a model each, which out= would write to one folder: leave it out"
        )
    artifacts = []
    for point in (choice.point for choice in choices):
        assert point is not None
        there = [folder / artifact for artifact in point.artifacts if (folder / artifact).is_dir()]
        if not there:
            raise ValueError(
                f"{point.label} has no artifact in {folder} to export: the overrides of its record make it again"
            )
        artifacts.append(there[0])
    print()
    return max(export([str(artifact), *settings]) for artifact in artifacts)


def _unmeasured(section: Section, budgets: Sequence[Budget]) -> list[str]:
    """Metrics, of the budgets and the headline, that no model of the section has."""
    metrics = dict.fromkeys([*(budget.metric for budget in budgets), section.headline])
    return [metric for metric in metrics if not any(metric in point.figures for point in section.points)]


def _rivals(points: Sequence[Point], section: Section) -> tuple[Point, ...]:
    """The points, of which the first is the best, that it is not sure to be better than."""
    errors = dict(zip(map(id, section.points), errors_of(section.points, section.headline), strict=True))
    return tuple(rival for rival in points[1:] if not _surely_worse(points[0], rival, section, errors))


def _surely_worse(best: Point, rival: Point, section: Section, errors: Mapping[int, float]) -> bool:
    """Whether the errors of the two leave no doubt that ``rival`` is worse; true as well where errors are unknown."""
    pair = (best, rival)
    probability = probability_dominated(
        [[point.value(section.headline)] for point in pair],
        [[errors[id(point)]] for point in pair],
        [[point.figures[section.headline].seeds] for point in pair],
        [section.direction],
    )[1]
    return probability is None or probability >= 1 - DECIDED


def _check(budgets: Sequence[Budget], sections: Sequence[Section]) -> None:
    """Refuse budgets of a metric that no record has."""
    measured = sorted({metric for section in sections for point in section.points for metric in point.figures})
    for budget in budgets:
        if budget.metric not in measured:
            short = [name for name, metric in SHORT.items() if metric in measured]
            close = get_close_matches(budget.metric, [*short, *measured], n=1)
            hint = f"; did you mean '{'max' if budget.at_most else 'min'}_{close[0]}'?" if close else ""
            raise ValueError(f"no record has the metric '{budget.metric}'{hint or ';'} there are {', '.join(measured)}")


def _answer(section: Section, choice: Choice, budgets: Sequence[Budget], folder: Path) -> Iterator[str]:
    """Lines that report the choice of a section."""
    limits = ", ".join(map(str, budgets)) or "no budget"
    point = choice.point
    if point is None:
        yield f"{section.title}: no model has every figure asked for ({limits})"
        return
    yield f"{section.title}: {'' if choice.fits else 'none fits; the nearest is '}{point.label}"
    names = dict.fromkeys(
        [section.headline, section.quality, "disk_mb", "latency_ratio", *(budget.metric for budget in budgets)]
    )
    yield "  " + ", ".join(f"{name} {number(point.value(name))}" for name in names if name in point.figures)
    values = {budget: point.value(budget.metric) for budget in budgets}
    if choice.rivals:
        smallest = min(choice.rivals, key=lambda rival: rival.value("disk_mb", math.inf))
        size = f", disk_mb {number(smallest.value('disk_mb'))}" if "disk_mb" in smallest.figures else ""
        yield (
            f"  not separable from it by {section.headline}: {len(choice.rivals)} of those that fit, the smallest "
            f"{smallest.label} ({section.headline} {number(smallest.value(section.headline))}{size})"
        )
    elif math.isnan(point.error(section.headline)):
        yield f"  {section.headline}: one seed, no error known"
    missed = [f"{budget}, is {number(value)}" for budget, value in values.items() if budget.excess(value) > 0]
    yield f"  missed: {'; '.join(missed)}" if missed else f"  within: {limits}"
    if point.slower:
        yield "  slower than the dense model"
    for artifact in point.artifacts:
        gone = "" if (folder / artifact).is_dir() else "  (not there: the overrides of its record make it again)"
        yield f"  {folder / artifact}{gone}"


if __name__ == "__main__":
    sys.exit(main())
