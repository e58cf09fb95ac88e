"""Points that were published elsewhere, read from a file to be drawn beside those of the records."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slimexp.analysis import optuna_study
from slimexp.analysis.point import Point, spreads
from slimexp.file import regular
from slimexp.host.console import printable
from slimexp.record.schema import LARGEST

LONGEST = 1 << 24  # bytes of a file
FORMAT = """\
a file of published points, drawn as hollow stars, never part of a front or a hypervolume: CSV with a header, JSON lines
(.jsonl), Parquet or an Optuna study (.db, .log) that names its metrics, with the columns 'label' and any metrics by
their names in report.csv (disk_mb, cer, latency_ratio; a 'cer_stderr' is the error of cer), and 'corpus', the section
it belongs to, where the report has several"""


def read(path: Path, titles: Sequence[str]) -> dict[str, list[Point]]:
    """Title of a section -> its published points.

    Args:
        path: A file of the format that ``FORMAT`` describes.
        titles: Titles of the sections; where there is a single one, a row need not name it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is malformed, or names a section that does not exist; the message names the row.
    """
    points: dict[str, list[Point]] = {title: [] for title in titles}
    for number, row in enumerate(_rows(path), start=1):
        where = f"row {number} of {path}"
        corpus = row.pop("corpus", None) or (titles[0] if len(titles) == 1 else None)
        point = _point(row, where)
        if not isinstance(corpus, str) or corpus not in points:
            named = "names no corpus" if corpus is None else f"is of corpus {corpus!r}"
            raise ValueError(f"{where} {named}: 'corpus' must be one of {', '.join(map(repr, titles))}")
        points[corpus].append(point)
    return points


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    studies = (*optuna_study.DATABASES, *optuna_study.JOURNALS)
    if path.suffix not in (ends := (".csv", ".jsonl", ".parquet", *studies)):
        raise ValueError(f"a file of published points must end in {', '.join(ends[:-1])} or {ends[-1]}, got {path}")
    if not path.exists():
        raise FileNotFoundError(f"no file {path} of published points")
    if path.suffix in studies:
        yield from optuna_study.trials(path)
        return
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = regular.content(path, LONGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as such") from None
    yield from _csv(text, path) if path.suffix == ".csv" else _jsonl(text, path)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowException, BufferReader, parquet  # type: ignore[import-untyped]

    try:
        rows = parquet.read_table(BufferReader(regular.content(path, LONGEST))).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    yield from ({name: value for name, value in row.items() if value is not None} for row in rows)


def _csv(text: str, path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} of {path} is no CSV: {error}") from None
    head = [name.strip() for name in rows[0][1]] if rows else []
    if "label" not in head or len(set(head)) < len(head):
        raise ValueError(f"the first line of {path} must name the columns, 'label' among them, each once; got {head}")
    for number, cells in rows[1:]:
        if cells and len(cells) != len(head):
            raise ValueError(f"line {number} of {path} has {len(cells)} cells, and the header {len(head)}")
        if cells:
            yield {name: cell.strip() for name, cell in zip(head, cells, strict=True) if cell.strip()}


def _jsonl(text: str, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} of {path} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {path} must be an object, got {type(row).__name__}")
            yield {name: value for name, value in row.items() if value is not None}


def _point(row: Mapping[str, Any], where: str) -> Point:
    label = row.get("label")
    if not isinstance(label, str):
        raise ValueError(f"{where} needs a 'label', the name that is drawn beside it")
    figures = {
        printable(name): _number(value, f"{printable(name)} in {where}")
        for name, value in row.items()
        if name != "label"
    }
    if not figures:
        raise ValueError(f"{where} ({label}) holds no metric")
    return Point(
        label=printable(label),
        chain=("published",),
        dense=False,
        seeds=(),
        figures=spreads([figures], dense=False),
        layers={},
        runs=(),
        keys=(),
        artifacts=(),
        time="",
    )


def _number(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ValueError(f"{where} must be a finite number, got {printable(repr(value))}")
    return number
