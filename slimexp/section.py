"""Records -> sections of comparable points, ready to be put in a table or drawn.

Every stage of a chain is a point. Records that differ in nothing but the seed are one point, with the
range over seeds. Records of different corpora or headlines are never compared: each pair is a section.
"""

import json
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from slimexp import pareto
from slimexp.record import Record, kept, read
from slimexp.stage import DENSE, as_floats, shaping

Direction = Literal["min", "max"]
T = TypeVar("T")

X_AXES = ("disk_mb", "params_live", "latency_p50_ms")  # the first that a section has, unless one is asked for
_DERIVED: dict[str, Direction] = {"kept": "max", "size_ratio": "min", "sparsity": "max", "bits_per_weight": "min"}
_SHARED = ("model", "trainer", "save_dtype")  # what shapes every stage of a run, beside the stages themselves
# What every technique has: told after what is its own.
_LESS_TELLING = frozenset(
    {"steps", "batch_size", "dropout", "workers", "pad_to", "clip_norm", "optimizer", "scheduler"}
)
_SHOWN = 4  # settings a stage's label holds


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean and range."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """Records that differ in nothing but the seed.

    Attributes:
        label: The chain that led here, with the settings in which it differs from others of the section.
        chain: Names of its stages.
        dense: Whether this is an uncompressed model.
        seeds: The seeds behind the figures.
        figures: Metric -> spread, see ``figures``.
        runs: Names of the runs.
        keys: Keys of the records.
        artifacts: Model folders, relative to the runs folder, one per seed.
    """

    label: str
    chain: tuple[str, ...]
    dense: bool
    seeds: tuple[int, ...]
    figures: dict[str, Spread]
    runs: tuple[str, ...]
    keys: tuple[str, ...]
    artifacts: tuple[str, ...]

    @property
    def slower(self) -> bool:
        """Whether it is slower than the dense model, beyond the interval of the measurement where there is one."""
        return not self.dense and min(self.value("latency_ratio", 0.0), self.value("latency_ratio_low", np.inf)) > 1

    @property
    def noisy(self) -> bool:
        """Whether latency was disturbed in any of the measurements."""
        return self.value("latency_noisy", 0.0) > 0

    def value(self, metric: str, absent: float = np.nan) -> float:
        """Mean of ``metric``."""
        return self.figures[metric].mean if metric in self.figures else absent


@dataclass(frozen=True)
class Section:
    """Points of one corpus and headline, and two axes to look at them.

    Attributes:
        title: The corpus.
        headline: Its measure of quality.
        direction: Which way the headline is better.
        x: Metric of the horizontal axis.
        y: Metric of the vertical axis.
        directions: Which way x and y are better.
        trivial: Headline of the best guess without a model; ``None`` where y is another metric.
        points: Dense models first, then by x.
        front: Indices into ``points`` of those that neither another point nor the trivial guess beats.
        cover: Hypervolume of size ratio and share of gain kept, in the box from the dense size without any
            gain (0) to the dense quality for no bytes (1); ``None`` where they are unknown.
        environments: What the points ran on, each with its number of records and its seeds.
    """

    title: str
    headline: str
    direction: Direction
    x: str
    y: str
    directions: tuple[Direction, Direction]
    trivial: float | None
    points: list[Point]
    front: list[int]
    cover: float | None
    environments: list[dict[str, Any]]

    def drawn(self, index: int) -> bool:
        """Whether point ``index`` has both x and y."""
        return not np.isnan([self.points[index].value(self.x), self.points[index].value(self.y)]).any()


def sections(records: Sequence[Record], *, x: str | None = None, y: str | None = None) -> list[Section]:
    """Sections of all records.

    Args:
        records: Oldest first; of two records of the same work the later counts.
        x: Metric of the horizontal axis; by default the first of ``X_AXES`` that was measured.
        y: Metric of the vertical axis; by default the headline.

    Raises:
        ValueError: No record has the metric asked for.
    """
    known = sorted({metric for record in records for metric in figures(record)})
    if unknown := [metric for metric in (x, y) if metric is not None and metric not in known]:
        raise ValueError(f"no record has the metric {unknown[0]!r}; there are {', '.join(known)}")
    parents = {record.key: record for record in records}
    groups = _grouped(records, _graded_on)
    titles = _titles(groups)
    return [_section(_with_dense(group), title, parents, x, y) for group, title in zip(groups, titles, strict=True)]


def load(runs: Path, *, x: str | None = None, y: str | None = None) -> list[Section]:
    """Sections of all records below ``runs``; lines that are no records are named on stderr.

    Raises:
        FileNotFoundError: ``runs`` does not exist.
        ValueError: It holds no record, or no record has the metric asked for.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = read(runs)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    if not records:
        raise ValueError(f"no records in {runs}: train something first, or name the folder that holds records.jsonl")
    return sections(records, x=x, y=y)


def figures(record: Record) -> dict[str, float]:
    """Metrics of a record, and ``kept``, ``size_ratio``, ``sparsity`` and ``bits_per_weight`` where they follow."""
    found = dict(record.metrics)
    if (share := kept(record)) is not None:
        found["kept"] = share
    if "disk_mb" in found and record.baseline.get("disk_mb"):
        found["size_ratio"] = found["disk_mb"] / record.baseline["disk_mb"]
    if found.get("params_live"):
        if "params_nonzero" in found:
            found.setdefault("sparsity", 1 - found["params_nonzero"] / found["params_live"])
        if "weights_mb" in found:
            found.setdefault("bits_per_weight", 8e6 * found["weights_mb"] / found["params_live"])
    return found


def better(metric: str, records: Sequence[Record]) -> Direction:
    """Which way ``metric`` is better, by the records that hold it; what none knows is taken for a cost."""
    ways = {record.headline: record.direction for record in records}
    for record in records:
        ways |= record.directions
    return {**ways, **_DERIVED}.get(metric, "min")


def _section(
    records: Sequence[Record], title: str, parents: Mapping[str, Record], x: str | None, y: str | None
) -> Section:
    groups = _grouped(records, lambda record: _identity(record, parents))
    groups = [list({record.seed: record for record in group}.values()) for group in groups]  # later work wins
    labels = _labels([group[-1] for group in groups], parents)
    points = [_point(group, label, parents) for group, label in zip(groups, labels, strict=True)]
    measured = {metric for point in points for metric in point.figures}
    headline = records[0].headline
    x = x or next((metric for metric in X_AXES if metric in measured), X_AXES[0])
    y = y or headline
    points.sort(key=lambda point: (not point.dense, point.value(x, np.inf), point.label))
    directions = (better(x, records), better(y, records))
    guess = float(np.mean([record.trivial for record in records]))
    trivial = (headline, guess, better(headline, records))
    both = [(point.value("size_ratio"), point.value("kept")) for point in points]
    return Section(
        title=title,
        headline=headline,
        direction=trivial[2],
        x=x,
        y=y,
        directions=directions,
        trivial=guess if y == headline else None,
        points=points,
        front=_front(points, x, y, directions, trivial),
        cover=None if np.isnan(both).any(1).all() else pareto.hypervolume(both, (1.0, 0.0), ("min", "max")),
        environments=_environments(records),
    )


def _front(
    points: Sequence[Point], x: str, y: str, directions: Sequence[Direction], trivial: tuple[str, float, Direction]
) -> list[int]:
    """Indices of the front; what is no better than the trivial guess is beaten by no model at all."""
    headline, guess, way = trivial

    def useful(point: Point) -> bool:
        value = point.value(headline)
        return not (value >= guess if way == "min" else value <= guess)

    axes = [(point.value(x), point.value(y)) if useful(point) else (np.nan, np.nan) for point in points]
    return [int(index) for index in pareto.front(axes, directions)]


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


def _point(group: Sequence[Record], label: str, parents: Mapping[str, Record]) -> Point:
    return Point(
        label=label,
        chain=tuple(_chain(group[-1], parents)),
        dense=group[-1].dense,
        seeds=tuple(sorted(record.seed for record in group)),
        figures=_spreads([figures(record) for record in group]),
        runs=tuple(sorted({record.name for record in group})),
        keys=tuple(record.key for record in group if record.key),
        artifacts=tuple(record.artifact for record in group if record.key),
    )


def _chain(record: Record, parents: Mapping[str, Record]) -> list[str]:
    """Stages that led to ``record``; where a parent's record is missing, the order of its configuration."""
    chain = [record.stage]
    while record.parent in parents and record.parent is not None:
        record = parents[record.parent]
        chain.insert(0, record.stage)
    if record.parent is not None and chain[0] in (planned := list(record.config.get("pipeline") or {})):
        chain = planned[: planned.index(chain[0])] + chain
    return [stage for stage in chain if stage != DENSE] or [DENSE]


def _settings(record: Record, parents: Mapping[str, Record]) -> dict[str, Any]:
    """Flat settings that shaped ``record``: of the stages of its chain as ``stage.key``, and of the run."""
    pipeline = record.config.get("pipeline") or {}
    stages = {stage: _unseeded(pipeline[stage]) for stage in _chain(record, parents) if stage in pipeline}
    shared = {name: record.config[name] for name in _SHARED if name in record.config}
    if "trainer" in shared:
        shared["trainer"] = shaping(shared["trainer"])
    return dict(_flat({**shared, **stages}))


def _identity(record: Record, parents: Mapping[str, Record]) -> str:
    return json.dumps(as_floats([record.dense, _chain(record, parents), sorted(_settings(record, parents).items())]))


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested configuration by dotted name."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield prefix, tree
        return
    for key, value in items:
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _unseeded(node: Mapping[str, Any]) -> dict[str, Any]:
    """A corpus or technique without the run's seed; seeds further down choose rows or scores and are settings."""
    return {key: value for key, value in node.items() if key != "seed"}


def _labels(records: Sequence[Record], parents: Mapping[str, Record]) -> list[str]:
    """Short names: the chain, with the settings in which records that have the same stage differ."""
    settings = [_settings(record, parents) for record in records]
    chains = [_chain(record, parents) for record in records]

    def varies(key: str) -> bool:
        held = [chain for one, chain in zip(settings, chains, strict=True) if key in one]
        partly = any(key not in one and chain in held for one, chain in zip(settings, chains, strict=True))
        return partly or len({json.dumps(one[key]) for one in settings if key in one}) > 1

    varying = {key for key in {key for one in settings for key in one} if varies(key)}
    labels = []
    for record, one, chain in zip(records, settings, chains, strict=True):
        told = {key: value for key, value in one.items() if key in varying and value is not None}
        label = " → ".join(_stage_label(stage, told) for stage in chain)
        common = ", ".join(_setting(key, value) for key, value in told.items() if key.split(".")[0] in _SHARED)
        prefix = f"{DENSE}: " if record.dense and chain != [DENSE] else ""
        labels.append(f"{prefix}{label}{f' [{common}]' if common else ''}")
    return [
        f"{label} [{record.name}]" if labels.count(label) > 1 else label
        for record, label in zip(records, labels, strict=True)
    ]


def _stage_label(stage: str, settings: Mapping[str, Any]) -> str:
    """``prune(sparsity=0.5)``."""
    own = [(key, value) for key, value in settings.items() if key.split(".")[0] == stage]
    own.sort(key=lambda pair: (pair[0].split(".")[1] in _LESS_TELLING, pair[0].count(".")))
    parts = [_setting(key, value) for key, value in own]
    more = [f"+{len(parts) - _SHOWN}"] if len(parts) > _SHOWN else []
    return f"{stage}({', '.join(parts[:_SHOWN] + more)})" if parts else stage


def _setting(key: str, value: Any) -> str:
    """The last words of a dotted name that tell it, with its value; of a class its name."""
    *path, last = key.split(".")
    if last == "_target_":
        return str(value).rsplit(".", 1)[-1]
    within = [path[-1]] if len(path) > 1 or path[:1] == ["model"] else []
    return f"{'.'.join([*within, last])}={f'{value:g}' if isinstance(value, float) else value}"


def _titles(groups: Sequence[Sequence[Record]]) -> list[str]:
    """The corpus' word; where a word returns, with the settings, or the rows, that tell them apart."""
    corpora: list[Mapping[str, Any]] = [group[0].config.get("data") or {} for group in groups]
    words = [str(corpus.get("_target_", "unknown corpus")).split(".")[-2:][0] for corpus in corpora]
    flat = [dict(_flat(_unseeded(corpus))) for corpus in corpora]
    titles = []
    for word, mine in zip(words, flat, strict=True):
        same = [other for other, other_word in zip(flat, words, strict=True) if other_word == word]
        differs = [key for key in mine if len({json.dumps(other.get(key)) for other in same}) > 1]
        titles.append(f"{word} ({', '.join(f'{key}={mine[key]}' for key in differs)})" if differs else word)
    return [
        f"{title} on {_rows(group[0])}" if titles.count(title) > 1 else title
        for title, group in zip(titles, groups, strict=True)
    ]


def _rows(record: Record) -> str:
    *_, rows, split = _graded_on(record)
    return f"{'no' if rows is None else f'{rows:.0f}'} {split or ''} rows".replace("  ", " ")


def _spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: Spread(float(np.mean(values)), min(values), max(values)) for name, values in columns.items()}


def _environments(records: Iterable[Record]) -> list[dict[str, Any]]:
    measured = [record for record in records if record.key]
    groups = _grouped(measured, lambda record: json.dumps([record.hardware, record.versions, record.git]))
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
    return _canonical(record.config.get("data")), record.headline, rows, task.get("split")


def _canonical(corpus: Mapping[str, Any] | None) -> str:
    return json.dumps(sorted(_flat(_unseeded(corpus or {}))))


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of equal key together, groups in the order in which their keys appear."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
