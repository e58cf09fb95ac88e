"""Records -> points: what differs in nothing but the seed is one, with mean, range and standard error."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from slimexp.analysis.uncertainty import standard_error
from slimexp.host.console import printable
from slimexp.record.figures import STDERR, figures, unshrunk
from slimexp.record.record import OF_LAYER, Record
from slimexp.record.stage import DENSE, as_floats, shaping

T = TypeVar("T")

# Counted in the model or its files: the same at every measurement.
COUNTED = frozenset(
    {"disk_mb", "weights_mb", "resident_mb", "params_live", "params_nonzero", "flops_prefill_g", "flops_decode_g"}
    | {"size_ratio", "sparsity", "bits_per_weight"}
)
_TO_DENSE = frozenset({"kept", "latency_ratio", "prefill_ratio", "decode_ratio"})  # 1 for the dense model itself
_NORMAL_95 = 1.959964  # half a 95 % interval, in standard errors
_SHARED = ("model", "trainer", "save_dtype")  # what shapes every stage of a run, beside the stages themselves
# What every technique has: told after what is its own.
_LESS_TELLING = frozenset(
    {"steps", "batch_size", "dropout", "workers", "pad_to", "clip_norm", "optimizer", "lr_scheduler"}
)
LONGEST = 100  # stages of a chain
_SHOWN = 4  # settings a stage's label holds, where they tell it from others


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: Over seeds.
        low: The lowest.
        high: The highest.
        error: Standard error of the mean, see ``uncertainty.standard_error``; ``None`` where it is not known.
        seeds: How many there are.
    """

    mean: float
    low: float
    high: float
    error: float | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Point:
    """Records that differ in nothing but the seed.

    Attributes:
        label: The chain that led here, with the settings in which it differs from others of the section.
        chain: Names of its stages.
        dense: Whether this is an uncompressed model.
        seeds: The seeds behind the figures.
        figures: Metric -> spread, see ``figures``.
        layers: Metric -> layer -> spread, layers as the model is laid out.
        runs: Names of the runs.
        keys: Keys of the records.
        artifacts: Model folders, relative to the runs folder, one per seed.
        time: When the last of its records finished, ISO 8601; empty where it has none.
    """

    label: str
    chain: tuple[str, ...]
    dense: bool
    seeds: tuple[int, ...]
    figures: dict[str, Spread]
    layers: dict[str, dict[str, Spread]]
    runs: tuple[str, ...]
    keys: tuple[str, ...]
    artifacts: tuple[str, ...]
    time: str

    @property
    def slower(self) -> bool:
        """Whether it is slower than the dense model, beyond the interval of the measurement where there is one."""
        return not self.dense and min(self.value("latency_ratio", 0.0), self.value("latency_ratio_low", np.inf)) > 1

    @property
    def unshrunk(self) -> bool:
        """Whether its zeros make it no smaller, see ``unshrunk``."""
        return unshrunk({name: spread.mean for name, spread in self.figures.items()})

    @property
    def noisy(self) -> bool:
        """Whether latency was disturbed in any of the measurements."""
        return self.value("latency_noisy", 0.0) > 0

    def value(self, metric: str, absent: float = np.nan) -> float:
        """Mean of ``metric``."""
        return self.figures[metric].mean if metric in self.figures else absent

    def error(self, metric: str) -> float:
        """Standard error of ``metric``; NaN where it is not known."""
        error = self.figures[metric].error if metric in self.figures else None
        return np.nan if error is None else error


def points(records: Sequence[Record], parents: Mapping[str, Record]) -> list[Point]:
    """Points of records that may be compared, with labels that tell them apart.

    Args:
        records: Oldest first; of two records of the same work and seed the later counts.
        parents: Records by key, for the chains.
    """
    groups = grouped(records, lambda record: _identity(record, parents))
    groups = [list({record.seed: record for record in group}.values()) for group in groups]  # later work wins
    labels = _labels([group[-1] for group in groups], parents)
    return [_point(group, label, parents) for group, label in zip(groups, labels, strict=True)]


def spreads(rows: Sequence[Mapping[str, float]], *, dense: bool) -> dict[str, Spread]:
    """Metric -> spread over ``rows``, one per seed, each with its measures' own errors among its figures."""
    # gsm8k_exact_match_stderr_strict-match belongs to gsm8k_exact_match_strict-match
    said = [{name.replace(STDERR, "", 1): row[name] for name in row if STDERR in name} for row in rows]
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        held = [pair for pair in zip(rows, said, strict=True) if name in pair[0]]
        values = [row[name] for row, _ in held]
        error = standard_error(values, [_own_error(name, *pair, dense=dense) for pair in held])
        found[name] = Spread(float(np.mean(values)), min(values), max(values), error, len(values))
    return found


def grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of equal key together, groups in the order in which their keys appear."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested configuration by dotted name."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield prefix, tree
        return
    for key, value in items:
        yield from flat(value, f"{prefix}.{key}" if prefix else str(key))


def unseeded(node: Mapping[str, Any]) -> dict[str, Any]:
    """A corpus or technique without the run's seed; seeds further down choose rows or scores and are settings."""
    return {key: value for key, value in node.items() if key != "seed"}


def _own_error(metric: str, row: Mapping[str, float], said: Mapping[str, float], *, dense: bool) -> float | None:
    """Standard error of one measurement, by what its measure says; ``None`` where it says nothing."""
    if metric in COUNTED or (dense and metric in _TO_DENSE):
        return 0.0
    if f"{metric}_low" in row and f"{metric}_high" in row:
        return (row[f"{metric}_high"] - row[f"{metric}_low"]) / (2 * _NORMAL_95)
    return said.get(metric) or None  # 0: rows that all came out alike say nothing of how others would have


def _point(group: Sequence[Record], label: str, parents: Mapping[str, Record]) -> Point:
    dense = group[-1].dense
    return Point(
        label=label,
        chain=tuple(_chain(group[-1], parents)),
        dense=dense,
        seeds=tuple(sorted(record.seed for record in group)),
        figures=spreads([figures(record) for record in group], dense=dense),
        layers=_layers(group),
        runs=tuple(sorted({printable(record.name) for record in group})),
        keys=tuple(record.key for record in group if record.key),
        artifacts=tuple(record.artifact for record in group if record.key),
        time=max(record.time for record in group),
    )


def _layers(group: Sequence[Record]) -> dict[str, dict[str, Spread]]:
    rows = [{name: value for name, value in record.metrics.items() if OF_LAYER in name} for record in group]
    found: dict[str, dict[str, Spread]] = {}
    for name, spread in spreads(rows, dense=False).items():
        metric, _, layer = name.partition(OF_LAYER)
        found.setdefault(metric, {})[layer] = spread
    return found


def lineage(record: Record, parents: Mapping[str, Record]) -> list[Record]:
    """Records of the stages that led to ``record``, which is the last; at most ``LONGEST``, and none of them twice."""
    found = {record.key: record}
    while (parent := parents.get(record.parent or "")) and parent.key not in found and len(found) < LONGEST:
        found[parent.key] = record = parent
    return list(found.values())[::-1]


def _chain(record: Record, parents: Mapping[str, Record]) -> list[str]:
    """Stages that led to ``record``; where a parent's record is missing, the order of its configuration."""
    ancestors = lineage(record, parents)
    chain, record = [one.stage for one in ancestors], ancestors[0]
    if (
        record.parent is not None
        and record.parent not in parents
        and chain[0] in (planned := list(record.config.get("pipeline") or {}))
    ):
        chain = planned[: planned.index(chain[0])] + chain
    return [stage for stage in chain if stage != DENSE] or [DENSE]


def _settings(record: Record, parents: Mapping[str, Record]) -> dict[str, Any]:
    """Flat settings that shaped ``record``: of the stages of its chain as ``stage.key``, and of the run."""
    pipeline = record.config.get("pipeline") or {}
    stages = {stage: unseeded(pipeline[stage]) for stage in _chain(record, parents) if pipeline.get(stage)}
    shared = {name: record.config[name] for name in _SHARED if name in record.config}
    if shared.get("trainer"):
        shared["trainer"] = shaping(shared["trainer"])
    return dict(flat({**shared, **stages}))


def _identity(record: Record, parents: Mapping[str, Record]) -> str:
    return json.dumps(as_floats([record.dense, _chain(record, parents), sorted(_settings(record, parents).items())]))


def _labels(records: Sequence[Record], parents: Mapping[str, Record]) -> list[str]:
    """Short names: the chain, with the settings in which records that have the same stage differ."""
    settings = [_settings(record, parents) for record in records]
    chains = [_chain(record, parents) for record in records]

    varying = _varying(settings, chains)

    def label(index: int, most: int | None) -> str:
        record, one, chain = records[index], settings[index], chains[index]
        told = {key: value for key, value in one.items() if key in varying and value is not None}
        name = " → ".join(_stage_label(stage, told, most) for stage in chain)
        common = ", ".join(_setting(key, value) for key, value in told.items() if key.split(".")[0] in _SHARED)
        prefix = f"{DENSE}: " if record.dense and chain != [DENSE] else ""
        return f"{prefix}{name}{f' [{common}]' if common else ''}"

    short = [label(index, _SHOWN) for index in range(len(records))]
    met = Counter(short)
    full = [label(index, None) if met[name] > 1 else name for index, name in enumerate(short)]
    met = Counter(full)
    told = [f"{name} [{record.name}]" if met[name] > 1 else name for record, name in zip(records, full, strict=True)]
    return list(map(printable, told))


def _varying(settings: Sequence[Mapping[str, Any]], chains: Sequence[list[str]]) -> set[str]:
    """Keys in which records that have the same stages differ; numbers of a component, where they have it in common."""
    keys = {key for one in settings for key in one}

    def component(key: str) -> str:
        path = key.removesuffix("._target_")
        while (path := path.rpartition(".")[0]) and f"{path}._target_" not in keys:
            pass
        return f"{path}._target_"

    def varies(key: str) -> bool:
        owner = component(key)
        alike: dict[str, list[tuple[Mapping[str, Any], list[str]]]] = {}
        for one, chain in zip(settings, chains, strict=True):
            alike.setdefault(str(one.get(owner)), []).append((one, chain))
        return any(_differ(key, group) for group in alike.values())

    return {key for key in keys if varies(key)}


def _differ(key: str, group: Sequence[tuple[Mapping[str, Any], list[str]]]) -> bool:
    """Whether some hold another value, or none though others with their stages do."""
    held = [chain for one, chain in group if key in one]
    partly = any(key not in one and chain in held for one, chain in group)
    return partly or len({json.dumps(one[key]) for one, _ in group if key in one}) > 1


def _stage_label(stage: str, settings: Mapping[str, Any], most: int | None) -> str:
    """``prune(sparsity=0.5)``, with at most so many settings."""
    own = [(key, value) for key, value in settings.items() if key.startswith(f"{stage}.")]
    own.sort(key=lambda pair: (pair[0].split(".")[1] in _LESS_TELLING, *_depth(pair[0])))
    parts = [_setting(key, value) for key, value in own]
    more = [f"+{len(parts) - most}"] if most is not None and len(parts) > most else []
    return f"{stage}({', '.join(parts[:most] + more)})" if parts else stage


def _depth(key: str) -> tuple[bool, int]:
    """What was chosen comes before its numbers: components, then options of the stage, then those of components."""
    return not key.endswith("._target_"), key.count(".")


def _setting(key: str, value: Any) -> str:
    """The last words of a dotted name that tell it, with its value; of a class its name."""
    *path, last = key.split(".")
    if last == "_target_":
        return str(value).rsplit(".", 1)[-1]
    within = [path[-1]] if len(path) > 1 or path[:1] == ["model"] else []
    return f"{'.'.join([*within, last])}={f'{value:g}' if isinstance(value, float) else value}"
