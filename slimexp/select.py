"""Name the model that fits a budget: ``python -m slimexp.select runs max_size_mb=8 min_exact_match=0.5``.

Of a language model, ``max_perplexity_ratio=1.1`` allows 1.1 times the dense model's perplexity.

Budgets are ``max_METRIC=NUMBER`` and ``min_METRIC=NUMBER``, of any figure in the records. Among the models that keep
all of them the one with the best headline is named, of equals the smallest; where none does, the nearest one. Models
that were exported have figures of other engines, such as ``max_onnx_latency_ms=5`` and ``min_gguf_tokens_per_s=200``.

``not_worse_by=0.02`` asks that a model is surely no further from dense than that: of retention 2 points less, of a
ratio of perplexities 0.02 more, at the worse end of the 95 % interval of both on the same rows.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from slimexp.analysis.comparison import Basis, Comparison
from slimexp.analysis.point import Point
from slimexp.analysis.section import Section, load
from slimexp.analysis.style import number
from slimexp.analysis.table import difference
from slimexp.host import console
from slimexp.host.progress import working
from slimexp.record.exported import absent

SHORT = {"size_mb": "disk_mb", "latency_ms": "latency_p50_ms", "params": "params_live"}
SHORT_OF_EXPORT = {"size_mb": "disk_mb", "latency_ms": "forward_ms"}  # behind the name of a format
MARGIN = "not_worse_by"
NONE_FITS = 1
_BASES: dict[Basis, str] = {  # what a comparison rests on, in words
    "rows": "on the same rows",
    "dense": "by their differences from dense",
    "unpaired": "unpaired",
}


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
        return cls(_in_full(metric), side == "max", limit)

    def excess(self, value: float) -> float:
        """Distance of ``value`` beyond the limit, as a share of it: at most 0 within, infinite for NaN."""
        if math.isnan(value):
            return math.inf
        over = value - self.limit if self.at_most else self.limit - value
        return over / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {number(self.limit)}"


def _in_full(metric: str) -> str:
    """A metric by its name in the records: ``size_mb`` is ``disk_mb``, ``onnx_latency_ms`` is ``onnx_forward_ms``."""
    for short, name in SHORT_OF_EXPORT.items():
        if metric.endswith(f"_{short}"):
            return f"{metric.removesuffix(short)}{name}"
    return SHORT.get(metric, metric)


class Choice(NamedTuple):
    """The model of one section.

    Attributes:
        point: The model; ``None`` where no model has every metric of the budgets.
        fits: Whether it is within every budget.
        rivals: Other models that fit, and that are not separable from it by the headline, the best first.
        beside: How each of those compares with it.
    """

    point: Point | None
    fits: bool
    rivals: tuple[Point, ...]
    beside: tuple[Comparison, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where a corpus has no model that fits, 2 after an error."""
    with console.output(), console.interruptible():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = console.Parser(
        "python -m slimexp.select", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=console.path, help="folder with records.jsonl somewhere below, or one such file")
    parser.add_argument(
        "budgets", nargs="*", metavar="max_METRIC=NUMBER", help=f"also {MARGIN}=NUMBER, export=FORMAT, out=FOLDER"
    )
    options = parser.parse_args(arguments)
    about_export = [text for text in options.budgets if re.match(r"(export(\.\w+)?|out)=", text)]
    try:
        limits = [text for text in options.budgets if text not in about_export]
        budgets = [Budget.parse(text) for text in limits if not text.startswith(f"{MARGIN}=")]
        margin = _margin([text for text in limits if text.startswith(f"{MARGIN}=")])
        settings = _export_settings(about_export)
        with working("reading the records"):
            sections = load(options.runs)
        _check(budgets, sections)
    except (ValueError, OSError) as error:
        print(f"error: {console.printable(error)}", file=sys.stderr)
        return console.USER_ERROR
    folder = options.runs if options.runs.is_dir() else options.runs.parent
    measured = [section for section in sections if not _unmeasured(section, budgets)]
    choices = [choose(section, budgets, margin) for section in measured]
    answers = ["\n".join(_answer(*pair, budgets, margin, folder)) for pair in zip(measured, choices, strict=True)]
    for section in sections:
        if absent := _unmeasured(section, budgets):
            answers.append(f"{section.title}: not asked, no model there has {', '.join(absent)}")
    print("\n\n".join(answers))
    unfit = sum(not choice.fits for choice in choices)
    if unfit or not choices:
        if settings or unfit < len(choices):
            print(f"\nno model fits in {unfit} of {len(choices)} corpora" + ", so nothing is exported" * bool(settings))
        return NONE_FITS
    try:
        return _export(choices, folder, settings) if settings else 0
    except ValueError as error:
        print(f"error: {console.printable(error)}", file=sys.stderr)
        return console.USER_ERROR


def choose(section: Section, budgets: Sequence[Budget], margin: float | None = None) -> Choice:
    """The best model within ``budgets``, or the nearest one outside them.

    Args:
        section: The models.
        budgets: The limits.
        margin: By how much more the dense model may be better, surely, in the figure of quality beside it.
    """
    sign = 1.0 if section.direction == "min" else -1.0
    points = section.points

    def excess(index: int) -> float:
        own = [budget.excess(points[index].value(budget.metric)) for budget in budgets]
        return max([0.0, *own, *([] if margin is None else [_beyond(section, index, margin)])])

    excesses = [excess(index) for index in range(len(points))]

    def cost(index: int) -> tuple[float, float, float]:
        return excesses[index], sign * points[index].value(section.headline), points[index].value("disk_mb", math.inf)

    known = [i for i in range(len(points)) if not math.isnan(points[i].value(section.headline))]
    places = sorted((i for i in known if math.isfinite(excesses[i])), key=cost)
    within = [index for index in places if excesses[index] <= 0]
    beside = {index: section.comparisons.compare(index, within[0], section.headline) for index in within[1:]}
    rivals = {index: found for index, found in beside.items() if found is not None and not found.worse}
    point = points[places[0]] if places else None
    return Choice(point, bool(within), tuple(points[index] for index in rivals), tuple(rivals.values()))


def _beyond(section: Section, index: int, margin: float) -> float:
    """How far the worse end of the interval of a model beside dense lies beyond ``margin``; infinite where unknown."""
    if section.points[index].dense:
        return 0.0
    beside = section.comparisons.beside_dense(index, section.quality)
    if beside is None:
        return math.inf
    return 0.0 if beside.not_worse(margin) else beside.worst - margin


def _margin(texts: Sequence[str]) -> float | None:
    """The margin of ``not_worse_by=0.02``; ``None`` where none is given.

    Raises:
        ValueError: It is no number of at least 0, or given twice.
    """
    try:
        values = [float(text.partition("=")[2]) for text in texts]
    except ValueError:
        values = [math.nan]
    if len(values) > 1 or any(not 0 <= value < math.inf for value in values):
        raise ValueError(f"write {MARGIN}=NUMBER once, with a number of at least 0, got {' '.join(texts)}")
    return values[0] if values else None


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


def _check(budgets: Sequence[Budget], sections: Sequence[Section]) -> None:
    """Refuse budgets of a metric that no record has."""
    measured = sorted({metric for section in sections for point in section.points for metric in point.figures})
    for budget in budgets:
        if budget.metric not in measured:
            short = [name for name, metric in SHORT.items() if metric in measured]
            close = get_close_matches(budget.metric, [*short, *measured], n=1)
            side = "max" if budget.at_most else "min"
            raise ValueError(absent(budget.metric, measured, f"{side}_{close[0]}" if close else None))


def _answer(
    section: Section, choice: Choice, budgets: Sequence[Budget], margin: float | None, folder: Path
) -> Iterator[str]:
    """Lines that report the choice of a section."""
    surely = [] if margin is None else [f"{section.quality} surely not worse than dense by more than {number(margin)}"]
    limits = ", ".join([*map(str, budgets), *surely]) or "no budget"
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
        bases = " and ".join(words for basis, words in _BASES.items() if basis in {c.basis for c in choice.beside})
        yield (
            f"  not separable from it by {section.headline}, {bases}: {len(choice.rivals)} of those that fit, the "
            f"smallest {smallest.label} ({section.headline} {number(smallest.value(section.headline))}{size})"
        )
    elif math.isnan(point.error(section.headline)):
        yield f"  {section.headline}: one seed, no error known"
    missed = [f"{budget}, is {number(value)}" for budget, value in values.items() if budget.excess(value) > 0]
    beside = section.comparisons.beside_dense(section.points.index(point), section.quality)
    if margin is not None and beside is not None:
        yield f"  {section.quality} minus dense {difference(beside)}, {_BASES[beside.basis]}"
        missed += [] if beside.not_worse(margin) else [f"{surely[0]}, may be by {number(beside.worst)}"]
    yield f"  missed: {'; '.join(missed)}" if missed else f"  within: {limits}"
    if point.slower:
        yield "  slower than the dense model"
    for artifact in point.artifacts:
        gone = "" if (folder / artifact).is_dir() else "  (not there: the overrides of its record make it again)"
        yield f"  {folder / artifact}{gone}"


if __name__ == "__main__":
    sys.exit(main())
