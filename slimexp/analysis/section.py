"""Sections: points of one corpus and headline, their front, and how sure it is.

Every stage of a chain is a point. Records of different corpora or headlines are never compared: each pair is a
section.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slimexp.analysis import front, pareto, published
from slimexp.analysis.comparison import Comparisons
from slimexp.analysis.front import Direction
from slimexp.analysis.grouping import environments_of, graded_on, grouped, titles_of, with_dense
from slimexp.analysis.point import Point, points
from slimexp.analysis.row_scores import RowScores
from slimexp.analysis.uncertainty import DECIDED
from slimexp.data.rows import Rows
from slimexp.host.console import printable
from slimexp.record.exported import absent
from slimexp.record.figures import (
    BITS_PER_BYTE,
    KEPT,
    PERPLEXITY,
    RATIO,
    compared_by,
    figures,
    guess_in,
    leading,
    untrained,
)
from slimexp.record.record import Record, read

RowsOf = Callable[[Record], Mapping[str, Rows]]  # metric -> results row by row of a record, where they are kept
X_AXES = ("disk_mb", "params_live", "latency_p50_ms")  # by default the first of these that was measured
_DERIVED: dict[str, Direction] = {
    KEPT: "max",
    PERPLEXITY: "min",
    f"{PERPLEXITY}{RATIO}": "min",
    f"{BITS_PER_BYTE}{RATIO}": "min",
    "size_ratio": "min",
    "sparsity": "max",
    "bits_per_weight": "min",
}


@dataclass(frozen=True)
class Section:
    """Points of one corpus and headline, and two or three axes to look at them.

    Attributes:
        title: Name of the corpus.
        headline: The metric that stands for quality; of language models that split text into the same tokens it is
            perplexity, though their records are headed by bits per byte, see ``record.figures.leading``.
        quality: The figure that says how near a model is to the dense one: ``kept``, or for language models
            ``perplexity_ratio`` or ``bits_per_byte_ratio``.
        untrained: Whether a dense model is no better than the best guess, so that there is no gain to keep.
        direction: Whether a smaller (``min``) or larger (``max``) headline is better.
        x: Metric of the horizontal axis.
        y: Metric of the vertical axis.
        directions: The same of x and y.
        z: A third metric, ``None`` for a front of two.
        z_direction: The same of z.
        guess: Headline of the best guess without a model: a point that is no better needs no model, and is on no front.
        trivial: The same where reports show it; ``None`` where y is another metric, and for language models, beside
            which guessing bytes is no baseline.
        points: Dense models first, then by x.
        front: Indices into ``points`` of those that neither another point nor the trivial guess beats.
        probabilities: Probability that each point is dominated, see ``Comparisons.probabilities``; ``None`` where
            errors are unknown.
        corner: Reference point of ``volume`` on x, y and z, see ``front.corner``.
        volume: Hypervolume of x, y and z inside ``corner``, see ``front.volume``.
        hypervolume: Hypervolume of size ratio and quality, see ``front.hypervolume``.
        hypervolume_history: ``hypervolume`` after each compressed point, in the order of ``finished``.
        published: Points that were published elsewhere (``--reference``): drawn, and part of nothing else.
        environments: Hardware, versions and code that the records come from, see ``grouping.environments_of``.
        comparisons: How any two of the points compare in any metric, with intervals.
    """

    title: str
    headline: str
    quality: str
    untrained: bool
    direction: Direction
    x: str
    y: str
    directions: tuple[Direction, Direction]
    z: str | None
    z_direction: Direction | None
    guess: float | None
    trivial: float | None
    points: list[Point]
    front: list[int]
    probabilities: list[float | None]
    corner: list[float] | None
    volume: float | None
    hypervolume: float | None
    hypervolume_history: list[float]
    published: list[Point]
    environments: list[dict[str, Any]]
    comparisons: Comparisons = field(compare=False, repr=False)

    @property
    def axes(self) -> dict[str, Direction]:
        """The two or three metrics of the axes -> which direction is better."""
        third = {} if self.z is None or self.z_direction is None else {self.z: self.z_direction}
        return {**dict(zip((self.x, self.y), self.directions, strict=True)), **third}

    @property
    def volume_axes(self) -> dict[str, Direction]:
        """The axes that ``corner`` and ``volume`` are of: those of the section, with ``_logarithm`` of perplexity."""
        return _logarithm(self.axes, self.quality)

    @property
    def metrics(self) -> list[str]:
        """Names of all figures of its points."""
        return list(dict.fromkeys(name for point in self.points for name in point.figures))

    @property
    def finished(self) -> list[int]:
        """Indices of the compressed points, in the order in which they finished."""
        return front.finished(self.points)

    def drawn(self, index: int) -> bool:
        """Whether point ``index`` has both x and y."""
        return self.drawable(self.points[index])

    def drawable(self, point: Point) -> bool:
        """Whether a point, of the section or published, has both x and y."""
        return not np.isnan([point.value(self.x), point.value(self.y)]).any()

    def undecided(self, index: int) -> bool:
        """Whether the data leave open if point ``index`` is dominated."""
        probability = self.probabilities[index]
        return probability is not None and DECIDED < probability < 1 - DECIDED


def sections(
    records: Sequence[Record],
    *,
    x: str | None = None,
    y: str | None = None,
    z: str | None = None,
    rows: RowsOf = lambda _: {},
) -> list[Section]:
    """Sections of all records.

    Args:
        records: Oldest first; of two records of the same work the later counts.
        x: Metric of the horizontal axis; by default the first of ``X_AXES`` that was measured.
        y: Metric of the vertical axis; by default the headline.
        z: A third metric for the front; by default none.
        rows: Results of a record row by row, by which points are told apart; by default there are none.

    Raises:
        ValueError: No record has a metric of the axes, or two axes have the same metric.
    """
    measured = sorted({metric for record in records for metric in figures(record)})
    requested = [metric for metric in (x, y, z) if metric is not None]
    if unknown := [metric for metric in requested if metric not in measured]:
        raise ValueError(absent(unknown[0], measured))
    parents = {record.key: record for record in records}
    groups = grouped(records, graded_on)
    titles = titles_of(groups)
    return [
        _section(with_dense(group, parents), title, parents, (x, y, z), rows)
        for group, title in zip(groups, titles, strict=True)
    ]


def load(
    runs: Path, *, x: str | None = None, y: str | None = None, z: str | None = None, reference: Path | None = None
) -> list[Section]:
    """Sections of all records below ``runs``; lines that are no records are named on stderr.

    Args:
        runs: A folder, or one record file.
        x: Metric of the horizontal axis, see ``sections``.
        y: Metric of the vertical axis.
        z: A third metric for the front.
        reference: A file of published points, see ``published.read``.

    Raises:
        FileNotFoundError: ``runs`` or ``reference`` does not exist.
        ValueError: There is no record, no record has a metric of the axes, or ``reference`` is malformed.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = read(runs)
        own = sections(records, x=x, y=y, z=z, rows=RowScores(runs)) if records else []
    for warning in caught:
        print(f"warning: {printable(warning.message)}", file=sys.stderr)
    if not records:
        raise ValueError(f"no records in {runs}: train something first, or name the folder that holds records.jsonl")
    if reference is None:
        return own
    references = published.read(reference, [section.title for section in own])
    return [replace(section, published=references[section.title]) for section in own]


def better(metric: str, records: Sequence[Record]) -> Direction:
    """Which direction of ``metric`` is better, as the records have it; a metric that none names counts as a cost."""
    directions = {record.headline: record.direction for record in records}
    for record in records:
        directions |= record.directions
    return {**directions, **_DERIVED}.get(metric, "min")


def _section(
    records: Sequence[Record],
    title: str,
    parents: Mapping[str, Record],
    axes_asked: tuple[str | None, str | None, str | None],
    rows: RowsOf,
) -> Section:
    members, (x, y, z) = points(records, parents), axes_asked
    graded, direction = records[0].headline, better(records[0].headline, records)
    headline = leading(graded, [record.metrics for record in records])
    quality = compared_by(graded, headline)
    x, y = _axes(members, title, headline, x, y, z)
    members.sort(key=lambda point: (not point.dense, point.value(x, np.inf), point.label))
    axes = {metric: better(metric, records) for metric in (x, y, z) if metric is not None}
    directions = list(axes.values())
    trivial = float(np.mean([record.trivial for record in records]))
    guesses = [guess for record in records if (guess := guess_in(headline, record)) is not None]
    guess = float(np.mean(guesses)) if guesses else None
    values = front.objectives(members, axes, graded, trivial, direction)
    comparisons = _comparisons(members, records, graded, trivial, rows)
    of_volume = _logarithm(axes, quality)
    corner = front.corner(members, of_volume, graded, trivial)
    inside = front.objectives(members, of_volume, graded, trivial, direction)
    return Section(
        title=title,
        headline=headline,
        quality=quality,
        untrained=any(record.dense and untrained(record) for record in records),
        direction=direction,
        x=x,
        y=y,
        directions=(axes[x], axes[y]),
        z=z,
        z_direction=None if z is None else axes[z],
        guess=guess,
        trivial=guess if y == headline and quality == KEPT else None,
        points=members,
        front=[int(index) for index in pareto.front(values, directions)],
        probabilities=comparisons.probabilities(values, axes),
        corner=corner,
        volume=None if corner is None else front.volume(inside, corner, directions),
        hypervolume=front.hypervolume(members, quality),
        hypervolume_history=front.hypervolume_history(members, quality),
        published=[],
        environments=environments_of(records),
        comparisons=comparisons,
    )


def _comparisons(
    members: Sequence[Point], records: Sequence[Record], headline: str, guess: float, rows: RowsOf
) -> Comparisons:
    """How the points of records compare, by whatever those hold of single rows."""
    by_key = {record.key: record for record in records if record.key}
    places = {key: index for index, point in enumerate(members) for key in point.keys}
    dense = [index for index, point in enumerate(members) if point.dense]

    def home(point: Point) -> int | None:
        of = next((by_key[key].baseline_key for key in point.keys), None)
        return places.get(of or "", dense[0] if len(dense) == 1 else None)

    def of_point(point: Point, metric: str) -> list[Rows]:
        found = [rows(by_key[key]).get(metric) for key in point.keys]
        return [row for row in found if row is not None]

    return Comparisons(
        members,
        better=partial(better, records=records),
        dense=[home(point) for point in members],
        rows=of_point,
        headline=headline,
        guess=guess,
    )


def _logarithm(axes: Mapping[str, Direction], quality: str) -> dict[str, Direction]:
    """Axes with bits per byte in place of perplexity, in which the best guess is a million and squeezes a volume."""
    same = {PERPLEXITY: BITS_PER_BYTE} if quality == f"{PERPLEXITY}{RATIO}" and BITS_PER_BYTE not in axes else {}
    return {same.get(metric, metric): direction for metric, direction in axes.items()}


def _axes(
    members: Sequence[Point], title: str, headline: str, x: str | None, y: str | None, z: str | None
) -> tuple[str, str]:
    """Metrics of the horizontal and the vertical axis.

    Raises:
        ValueError: Two axes have the same metric.
    """
    measured = {metric for point in members for metric in point.figures}
    y = y or headline
    costs = [metric for metric in X_AXES if metric not in (y, z)]  # the headline may be one of them
    x = x or next((metric for metric in costs if metric in measured), costs[0])
    if len({x, y, z}) < 3:
        named = ", ".join(filter(None, (x, y, z)))
        raise ValueError(
            f"the axes must be different metrics, got {named} for {title}: name another by --x, --y or --z"
        )
    return x, y
