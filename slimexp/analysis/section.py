"""Sections: points of one corpus and headline, their front, and how sure it is.

Every stage of a chain is a point. Records of different corpora or headlines are never compared: each pair is a
section.
"""

import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimexp.analysis import pareto, published
from slimexp.analysis.point import Point, flat, grouped, points, unseeded
from slimexp.analysis.uncertainty import DECIDED, probability_dominated
from slimexp.host.console import printable
from slimexp.record.figures import figures
from slimexp.record.record import Record, read
from slimexp.record.stage import DENSE

Direction = Literal["min", "max"]

X_AXES = ("disk_mb", "params_live", "latency_p50_ms")  # the first that a section has, unless one is asked for
_DERIVED: dict[str, Direction] = {"kept": "max", "size_ratio": "min", "sparsity": "max", "bits_per_weight": "min"}


@dataclass(frozen=True)
class Section:
    """Points of one corpus and headline, and two or three axes to look at them.

    Attributes:
        title: The corpus.
        headline: Its measure of quality.
        direction: Which way the headline is better.
        x: Metric of the horizontal axis.
        y: Metric of the vertical axis.
        directions: Which way x and y are better.
        z: A third metric, ``None`` for a front of two.
        z_direction: Which way z is better.
        trivial: Headline of the best guess without a model; ``None`` where y is another metric.
        points: Dense models first, then by x.
        front: Indices into ``points`` of those that neither another point nor the trivial guess beats.
        probabilities: Of each point, the probability that it is beaten, see
            ``uncertainty.probability_dominated``; ``None`` where errors are not known.
        corner: x, y and z of the worst that counts for ``volume``: the trivial guess for the headline, the dense
            model for what else there is; ``None`` where one of them is unknown.
        volume: Hypervolume of the axes inside ``corner``, each in units of it.
        cover: Hypervolume of size ratio and share of gain kept, in the box from the dense size without any
            gain (0) to the dense quality for no bytes (1); ``None`` where they are unknown.
        growth: ``cover`` after each compressed point, in the order of ``finished``.
        published: Points of others, by ``--reference``: drawn, and part of nothing else.
        environments: What the points ran on, each with its number of records and its seeds.
    """

    title: str
    headline: str
    direction: Direction
    x: str
    y: str
    directions: tuple[Direction, Direction]
    z: str | None
    z_direction: Direction | None
    trivial: float | None
    points: list[Point]
    front: list[int]
    probabilities: list[float | None]
    corner: list[float] | None
    volume: float | None
    cover: float | None
    growth: list[float]
    published: list[Point]
    environments: list[dict[str, Any]]

    @property
    def axes(self) -> dict[str, Direction]:
        """The two or three metrics, and which way each is better."""
        third = {} if self.z is None or self.z_direction is None else {self.z: self.z_direction}
        return {**dict(zip((self.x, self.y), self.directions, strict=True)), **third}

    @property
    def finished(self) -> list[int]:
        """Indices of the compressed points, in the order in which they finished."""
        return _finished(self.points)

    def drawn(self, index: int) -> bool:
        """Whether point ``index`` has both x and y."""
        return self.drawable(self.points[index])

    def drawable(self, point: Point) -> bool:
        """Whether a point, of the section or published, has both x and y."""
        return not np.isnan([point.value(self.x), point.value(self.y)]).any()

    def undecided(self, index: int) -> bool:
        """Whether the data do not tell if point ``index`` is dominated."""
        probability = self.probabilities[index]
        return probability is not None and DECIDED < probability < 1 - DECIDED


def sections(
    records: Sequence[Record], *, x: str | None = None, y: str | None = None, z: str | None = None
) -> list[Section]:
    """Sections of all records.

    Args:
        records: Oldest first; of two records of the same work the later counts.
        x: Metric of the horizontal axis; by default the first of ``X_AXES`` that was measured.
        y: Metric of the vertical axis; by default the headline.
        z: A third metric for the front; by default none.

    Raises:
        ValueError: No record has the metric asked for, or two axes are of one metric.
    """
    known = sorted({metric for record in records for metric in figures(record)})
    asked = [metric for metric in (x, y, z) if metric is not None]
    if unknown := [metric for metric in asked if metric not in known]:
        raise ValueError(f"no record has the metric {unknown[0]!r}; there are {', '.join(known)}")
    parents = {record.key: record for record in records}
    groups = grouped(records, _graded_on)
    titles = _titles(groups)
    return [_section(_with_dense(group), title, parents, x, y, z) for group, title in zip(groups, titles, strict=True)]


def load(
    runs: Path, *, x: str | None = None, y: str | None = None, z: str | None = None, reference: Path | None = None
) -> list[Section]:
    """Sections of all records below ``runs``; lines that are no records are named on stderr.

    Args:
        runs: A folder, or one record file.
        x: As ``sections``; so are ``y`` and ``z``.
        reference: A file of published points, see ``published.read``.

    Raises:
        FileNotFoundError: ``runs`` or ``reference`` does not exist.
        ValueError: There is no record, no record has the metric asked for, or ``reference`` is not as it should be.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = read(runs)
    for warning in caught:
        print(f"warning: {printable(warning.message)}", file=sys.stderr)
    if not records:
        raise ValueError(f"no records in {runs}: train something first, or name the folder that holds records.jsonl")
    found = sections(records, x=x, y=y, z=z)
    if reference is None:
        return found
    others = published.read(reference, [section.title for section in found])
    return [replace(section, published=others[section.title]) for section in found]


def better(metric: str, records: Sequence[Record]) -> Direction:
    """Which way ``metric`` is better, by the records that hold it; what none knows is taken for a cost."""
    ways = {record.headline: record.direction for record in records}
    for record in records:
        ways |= record.directions
    return {**ways, **_DERIVED}.get(metric, "min")


def _section(
    records: Sequence[Record], title: str, parents: Mapping[str, Record], x: str | None, y: str | None, z: str | None
) -> Section:
    found = points(records, parents)
    measured = {metric for point in found for metric in point.figures}
    headline = records[0].headline
    y = y or headline
    costs = [metric for metric in X_AXES if metric not in (y, z)]  # the headline may be one of them
    x = x or next((metric for metric in costs if metric in measured), costs[0])
    if len({x, y, z}) < 3:
        named = ", ".join(filter(None, (x, y, z)))
        raise ValueError(
            f"the axes must be different metrics, got {named} for {title}: name another by --x, --y or --z"
        )
    found.sort(key=lambda point: (not point.dense, point.value(x, np.inf), point.label))
    axes = {metric: better(metric, records) for metric in (x, y, z) if metric is not None}
    ways = list(axes.values())
    guess = float(np.mean([record.trivial for record in records]))
    values = _values(found, axes, headline, guess, better(headline, records))
    corner = _corner(found, axes, headline, guess)
    return Section(
        title=title,
        headline=headline,
        direction=better(headline, records),
        x=x,
        y=y,
        directions=(axes[x], axes[y]),
        z=z,
        z_direction=None if z is None else axes[z],
        trivial=guess if y == headline else None,
        points=found,
        front=[int(index) for index in pareto.front(values, ways)],
        probabilities=_probabilities(found, axes, values),
        corner=corner,
        volume=None if corner is None else _volume(values, corner, ways),
        cover=_cover(found),
        growth=_growth(found),
        published=[],
        environments=_environments(records),
    )


def _values(
    found: Sequence[Point], axes: Mapping[str, Direction], headline: str, guess: float, way: Direction
) -> NDArray[np.float64]:
    """[N, K]; NaN for what is no better than the trivial guess, as it is beaten by no model at all."""
    values = np.array([[point.value(metric) for metric in axes] for point in found])
    quality = np.array([point.value(headline) for point in found])
    values[quality >= guess if way == "min" else quality <= guess] = np.nan
    return values


def _probabilities(
    found: Sequence[Point], axes: Mapping[str, Direction], values: NDArray[np.float64]
) -> list[float | None]:
    errors = [[point.error(metric) for metric in axes] for point in found]
    seeds = [[point.figures[metric].seeds if metric in point.figures else 0 for metric in axes] for point in found]
    return probability_dominated(values, errors, seeds, list(axes.values()))


def _corner(found: Sequence[Point], axes: Mapping[str, Direction], headline: str, guess: float) -> list[float] | None:
    """The worst that counts, see ``Section``; of several dense models the worst."""
    corner = []
    for metric, way in axes.items():
        dense = [point.value(metric) for point in found if point.dense and metric in point.figures]
        worst = [guess] if metric == headline else dense
        if not worst:
            return None
        corner.append(max(worst) if way == "min" else min(worst))
    return corner


def _volume(values: NDArray[np.float64], corner: Sequence[float], ways: Sequence[Direction]) -> float | None:
    units = np.array([abs(end) or 1.0 for end in corner])
    volume = pareto.hypervolume(values / units, np.array(corner) / units, ways)
    return volume if np.isfinite(volume) else None  # where a dense figure is next to nothing


def _finished(found: Sequence[Point]) -> list[int]:
    return sorted((i for i, point in enumerate(found) if not point.dense), key=lambda i: found[i].time)


def _sizes(found: Iterable[Point]) -> NDArray[np.float64]:
    """[N, 2]: share of the dense bytes, share of the dense gain."""
    return np.array([(point.value("size_ratio"), point.value("kept")) for point in found]).reshape(-1, 2)


def _cover(found: Sequence[Point]) -> float | None:
    sizes = _sizes(found)
    return None if np.isnan(sizes).any(1).all() else pareto.hypervolume(sizes, (1.0, 0.0), ("min", "max"))


def _growth(found: Sequence[Point]) -> list[float]:
    """Of the points so far only their front is carried on, so that a long sweep is not quadratic."""
    if _cover(found) is None:
        return []
    held, covers = np.empty((0, 2)), []
    for size in _sizes(found[index] for index in _finished(found)):
        held = np.vstack([held, size])
        held = held[pareto.front(held, ("min", "max"))]
        covers.append(pareto.hypervolume(held, (1.0, 0.0), ("min", "max")))
    return covers


def _with_dense(records: Sequence[Record]) -> list[Record]:
    """The records and, where that of a dense model is missing, what others hold as their baseline."""
    known = {record.key for record in records}
    lost = {
        record.baseline_key: replace(
            record,
            stage=DENSE,
            technique=DENSE,
            key="",
            baseline_key="",
            parent=None,
            metrics=record.baseline,
            config={**record.config, "model": record.config.get("baseline") or record.config.get("model")},
        )
        for record in records
        if record.baseline and record.baseline_key not in known
    }
    return [*records, *lost.values()]


def _titles(groups: Sequence[Sequence[Record]]) -> list[str]:
    """The corpus' word; where a word returns, with the settings, or the rows, that tell them apart."""
    corpora: list[Mapping[str, Any]] = [group[0].config.get("data") or {} for group in groups]
    words = [str(corpus.get("_target_", "unknown corpus")).split(".")[-2:][0] for corpus in corpora]
    settings = [dict(flat(unseeded(corpus))) for corpus in corpora]
    titles = []
    for word, mine in zip(words, settings, strict=True):
        same = [other for other, other_word in zip(settings, words, strict=True) if other_word == word]
        differs = [key for key in mine if len({json.dumps(other.get(key)) for other in same}) > 1]
        titles.append(f"{word} ({', '.join(f'{key}={mine[key]}' for key in differs)})" if differs else word)
    return [
        printable(f"{title} on {_rows(group[0])}" if titles.count(title) > 1 else title)
        for title, group in zip(titles, groups, strict=True)
    ]


def _rows(record: Record) -> str:
    *_, rows, split = _graded_on(record)
    return f"{'no' if rows is None else f'{rows:.0f}'} {split or ''} rows".replace("  ", " ")


def _environments(records: Iterable[Record]) -> list[dict[str, Any]]:
    measured = [record for record in records if record.key]
    groups = grouped(measured, lambda record: json.dumps([record.hardware, record.versions, record.git]))
    return [
        {
            "records": len(group),
            "seeds": sorted({record.seed for record in group}),
            "kernels": sorted({record.kernel for record in group}),
            "hardware": group[0].hardware,
            "versions": group[0].versions,
            "git": group[0].git,
        }
        for group in groups
    ]


def _graded_on(record: Record) -> tuple[str, str, float | None, str | None]:
    """What must be equal for two headlines to be compared: corpus, headline, number of rows and their split."""
    task = (record.config.get("measure") or {}).get("task") or {}
    rows = record.metrics.get("task_examples", record.baseline.get("task_examples"))
    split = task.get("split")
    return _canonical(record.config.get("data")), record.headline, rows, None if split is None else str(split)


def _canonical(corpus: Mapping[str, Any] | None) -> str:
    return json.dumps(sorted(flat(unseeded(corpus or {})), key=json.dumps))
