"""Points: records that differ in nothing but the seed, with mean, range and standard error of each figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimexp.analysis.grouping import grouped
from slimexp.analysis.label import labels
from slimexp.analysis.lineage import chain_of, settings_of
from slimexp.analysis.uncertainty import standard_error
from slimexp.host.console import printable
from slimexp.record.figures import OF_LAYER, figures, unshrunk
from slimexp.record.record import Record
from slimexp.record.schema import PAIRED, STDERR
from slimexp.record.stage import as_floats

# Metrics counted in the model or its files, which are the same at every measurement.
COUNTED = frozenset(
    {"disk_mb", "weights_mb", "resident_mb", "params_live", "params_nonzero", "flops_prefill_g", "flops_decode_g"}
    | {"size_ratio", "sparsity", "bits_per_weight"}
)
_TO_DENSE = frozenset(
    {"kept", "perplexity_ratio", "bits_per_byte_ratio", "latency_ratio", "prefill_ratio", "decode_ratio"}
)  # 1 for the dense model itself
_NORMAL_95 = 1.959964  # half a 95 % interval, in standard errors


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: Mean over the seeds.
        low: Lowest value of a seed.
        high: Highest value of a seed.
        error: Standard error of the mean, see ``uncertainty.standard_error``; ``None`` where it is unknown.
        seeds: Number of seeds.
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
        label: The stages that led here, with the settings in which they differ from those of other points.
        chain: Names of those stages.
        dense: Whether this is an uncompressed model.
        seeds: The seeds behind the figures.
        figures: Metric -> spread, see ``record.figures.figures``.
        layers: Metric -> layer -> spread, with layers in the order of the model.
        runs: Names of the runs.
        keys: Keys of the records behind the figures.
        artifacts: Model folders, relative to the runs folder, one per seed.
        time: When the last of the records finished, ISO 8601; empty where there is none.
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
        """Whether its zeros make it no smaller, see ``record.figures.unshrunk``."""
        return unshrunk({name: spread.mean for name, spread in self.figures.items()})

    @property
    def noisy(self) -> bool:
        """Whether latency was disturbed in any of the measurements."""
        return self.value("latency_noisy", 0.0) > 0

    def value(self, metric: str, absent: float = np.nan) -> float:
        """Mean of ``metric``; ``absent`` where it was not measured."""
        return self.figures[metric].mean if metric in self.figures else absent

    def error(self, metric: str) -> float:
        """Standard error of ``metric``; NaN where it is unknown."""
        error = self.figures[metric].error if metric in self.figures else None
        return np.nan if error is None else error


def points(records: Sequence[Record], parents: Mapping[str, Record]) -> list[Point]:
    """Points of records that may be compared, with labels that distinguish them.

    Args:
        records: Oldest first; of two records of the same work and seed the later counts.
        parents: Records by key, for the chains.
    """
    groups = grouped(records, lambda record: _identity(record, parents))
    groups = [list({record.seed: record for record in group}.values()) for group in groups]  # later work wins
    names = labels([group[-1] for group in groups], parents)
    return [_point(group, label, parents) for group, label in zip(groups, names, strict=True)]


def spreads(rows: Sequence[Mapping[str, float]], *, dense: bool) -> dict[str, Spread]:
    """Spread of each metric over the seeds.

    Args:
        rows: Metric -> value, one mapping per seed; standard errors of single measurements are among its entries.
        dense: Whether they are of the dense model, whose ratios to itself are exact.
    """
    # gsm8k_exact_match_stderr_strict-match belongs to gsm8k_exact_match_strict-match
    stderrs = [{name.replace(STDERR, "", 1): row[name] for name in row if STDERR in name} for row in rows]
    result = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        measured = [pair for pair in zip(rows, stderrs, strict=True) if name in pair[0]]
        values = [row[name] for row, _ in measured]
        error = standard_error(values, [_own_error(name, *pair, dense=dense) for pair in measured])
        result[name] = Spread(float(np.mean(values)), min(values), max(values), error, len(values))
    return result


def _own_error(metric: str, row: Mapping[str, float], stderrs: Mapping[str, float], *, dense: bool) -> float | None:
    """Standard error of one measurement as its measure gives it; ``None`` where it gives none."""
    if metric in COUNTED or (dense and metric in _TO_DENSE):
        return 0.0
    if f"{metric}_low" in row and f"{metric}_high" in row:
        error = (row[f"{metric}_high"] - row[f"{metric}_low"]) / (2 * _NORMAL_95)
        return None if metric.endswith(PAIRED) and not error else error  # of rows that are all alike, as below
    return stderrs.get(metric) or None  # 0 is of rows with equal results, which show nothing of other rows


def _point(group: Sequence[Record], label: str, parents: Mapping[str, Record]) -> Point:
    dense = group[-1].dense
    return Point(
        label=label,
        chain=tuple(chain_of(group[-1], parents)),
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
    """Metric -> layer -> spread, of the metrics that are taken of each layer."""
    rows = [{name: value for name, value in record.metrics.items() if OF_LAYER in name} for record in group]
    layers: dict[str, dict[str, Spread]] = {}
    for name, spread in spreads(rows, dense=False).items():
        metric, _, layer = name.partition(OF_LAYER)
        layers.setdefault(metric, {})[layer] = spread
    return layers


def _identity(record: Record, parents: Mapping[str, Record]) -> str:
    """Text that is equal for records that differ in nothing but the seed."""
    settings = sorted(settings_of(record, parents).items())
    return json.dumps(as_floats([record.dense, chain_of(record, parents), settings]))
