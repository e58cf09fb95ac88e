"""Groups records that may be compared: those of the same corpus, headline and rows, with their dense model."""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

from slimexp.host.console import printable
from slimexp.record.record import Record
from slimexp.record.settings import flat, unseeded
from slimexp.record.stage import DENSE

T = TypeVar("T")
_COUNTS = ("disk_mb", "weights_mb", "params_live", "params_nonzero")  # of ``measure.size``


def grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of equal key together, groups in the order in which their keys appear."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def with_dense(records: Sequence[Record], known: Mapping[str, Record] | None = None) -> list[Record]:
    """The records, and one made from a baseline for each dense model that has none among them.

    Args:
        records: Records that may be compared.
        known: All records by key. A dense model that was measured on other rows since has one there, which names its
            folder and its results; without one only its figures are known.
    """
    recorded, known = {record.key for record in records}, known or {}
    dense = [record for record in records if record.dense]
    records = [record if record.baseline_key in recorded else _beside_twin(record, dense) for record in records]
    missing = {
        record.baseline_key: _dense_of(record, known.get(record.baseline_key or ""))
        for record in records
        if record.baseline and record.baseline_key not in recorded
    }
    return [*records, *missing.values()]


def _beside_twin(record: Record, dense: Sequence[Record]) -> Record:
    """A record beside the dense model among others that has the very figures of its own: a command of its own has none.

    They are the same model if every count is equal, and the headline to its last digit.
    """
    for other in dense:
        same = [record.baseline.get(name) == other.metrics.get(name) for name in (*_COUNTS, record.headline)]
        if record.baseline and all(same) and {*_COUNTS, record.headline} <= record.baseline.keys():
            return replace(record, baseline_key=other.key)
    return record


def _dense_of(record: Record, dense: Record | None) -> Record:
    """A record of the dense model that a record was compared with, with the figures that it had there.

    Args:
        record: Of a compressed model.
        dense: What is known of the dense model, measured on other rows; ``None`` where it has no record.
    """
    if dense is None or not dense.dense:
        return replace(
            record,
            stage=DENSE,
            technique=DENSE,
            key="",
            baseline_key="",
            parent=None,
            metrics=record.baseline,
            config={**record.config, "model": record.config.get("baseline") or record.config.get("model")},
        )
    graded: dict[str, Any] = {name: record.config[name] for name in ("data", "measure") if name in record.config}
    return replace(
        dense,
        headline=record.headline,
        direction=record.direction,
        trivial=record.trivial,
        directions={**dense.directions, **record.directions},
        metrics=record.baseline,
        baseline=record.baseline,
        config={**dense.config, **graded},
        scores=_same_tests(record.scores, dense.scores),
    )


def _same_tests(of: Mapping[str, str], dense: Mapping[str, str]) -> dict[str, str]:
    """Files of the dense model's results in the tests of another: each model has a folder, each test a name."""
    folders = {PurePosixPath(name).parent for name in dense.values()}
    return {test: str(folder / PurePosixPath(name).name) for folder in folders for test, name in of.items()}


def titles_of(groups: Sequence[Sequence[Record]]) -> list[str]:
    """A title for each group: the name of its corpus and, where names are equal, the settings or rows that differ."""
    corpora: list[Mapping[str, Any]] = [group[0].config.get("data") or {} for group in groups]
    names = [str(corpus.get("_target_", "unknown corpus")).split(".")[-2:][0] for corpus in corpora]
    settings = [dict(flat(unseeded(corpus))) for corpus in corpora]
    titles = []
    for name, own in zip(names, settings, strict=True):
        same = [other for other, other_name in zip(settings, names, strict=True) if other_name == name]
        differing = [key for key in own if len({json.dumps(other.get(key)) for other in same}) > 1]
        titles.append(f"{name} ({', '.join(f'{key}={own[key]}' for key in differing)})" if differing else name)
    return [
        printable(f"{title} on {_rows(group[0])}" if titles.count(title) > 1 else title)
        for title, group in zip(titles, groups, strict=True)
    ]


def _rows(record: Record) -> str:
    *_, rows, split = graded_on(record)
    return f"{'no' if rows is None else f'{rows:.0f}'} {split or ''} rows".replace("  ", " ")


def graded_on(record: Record) -> tuple[str, str, float | None, str | None]:
    """Corpus, headline, number of rows and their split: headlines are compared only where all four are equal."""
    task = (record.config.get("measure") or {}).get("task") or {}
    rows = record.metrics.get("task_examples", record.baseline.get("task_examples"))
    split = task.get("split")
    return _canonical(record.config.get("data")), record.headline, rows, None if split is None else str(split)


def _canonical(corpus: Mapping[str, Any] | None) -> str:
    return json.dumps(sorted(flat(unseeded(corpus or {})), key=json.dumps))


def environments_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The environments that the records were measured in, each with their number, seeds and kernels."""
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
