"""Rows of one file: csv, tsv, jsonl, parquet or txt.

Readers of pandas, pyarrow and datasets are not used: in a tsv they treat a quote at the start of a cell as the start of
a quotation and swallow the rows up to the next quote, or, without quoting, leave the quotes that Excel writes; and
their errors name no line.
"""

import csv
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Line = tuple[int, list[str]]  # number of the line in which a row begins, and its cells

_LONGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131,072
_LINE_END = re.compile(r"\r\n|\r|\n")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_ADVICE = {  # ending of a file that is not read -> way out
    ".json": "write one JSON object per line and call the file .jsonl",
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst"), "unpack it"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV (UTF-8)"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        cells: Name of the column -> value.
        origin: The file or dataset of the row.
        number: Number of the line in which the row begins, or of the row where there are no lines, from 1.
        unit: Unit of ``number``: line or row.
    """

    cells: Mapping[str, Any]
    origin: str
    number: int
    unit: str = "line"

    @property
    def place(self) -> str:
        """Origin and number of the row, for messages."""
        return f"{self.origin}, {self.unit} {self.number}"


def read_file(path: Path) -> Iterator[Row]:
    """Rows of one file, which is UTF-8 text (or parquet).

    Blanks around the names of columns are dropped, and blank lines are no rows. A csv file is read by RFC 4180, like in
    Excel: a cell in quotes may hold commas, line breaks and doubled quotes. In a tsv file every line is a row and a
    quote is a character like others, unless all cells with a quote are quoted like in Excel; a file whose lines differ
    in their number of cells is read like a csv file, if that makes them equal.

    Raises:
        ValueError: The ending is unknown, or the file unreadable, malformed or without rows; names the file and, where
            there is one, the line.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        advice = _ADVICE.get(path.suffix.lower())
        way_out = f": {advice}" if advice else ""
        raise ValueError(f"{path}: cannot read '{path.suffix}' files, only {', '.join(READERS)}{way_out}")
    row = None
    try:
        for row in reader(path):
            yield row
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    if row is None:
        raise ValueError(f"{path}: the file holds no rows: fill it, or take it away")


def _text(path: Path) -> str:
    """The whole file, decoded, with its line ends unchanged."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path}: the file is UTF-16 (Excel's 'Unicode text'): save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = _line_at(data.decode("latin-1"), error.start)
        raise ValueError(
            f"{path}, line {number}: not UTF-8 text ({error.reason} at byte {error.start}): save the file as UTF-8"
        ) from error
    if (position := text.find("\0")) >= 0:
        raise ValueError(
            f"{path}, line {_line_at(text, position)}: a NUL character, which no text has: save the file as UTF-8"
        )
    return text


def _line_at(text: str, position: int) -> int:
    """Number of the line of a character, from 1."""
    return len(_LINE_END.findall(text, 0, position)) + 1


def _csv(path: Path) -> Iterator[Row]:
    yield from _rows(path, _quoted(path, _text(path), ","), ",")


def _tsv(path: Path) -> Iterator[Row]:
    text = _text(path)
    lines = [(number, line.split("\t")) for number, line in enumerate(_LINE_END.split(text), start=1) if line]
    if '"' in text:
        if _ragged(lines):
            lines = _if_quoted(path, text) or lines
        elif all(_QUOTED.fullmatch(cell) for _, cells in lines for cell in cells if '"' in cell):
            lines = [(number, list(map(_unquoted, cells))) for number, cells in lines]
    yield from _rows(path, lines, "\t")


def _ragged(lines: Sequence[Line]) -> bool:
    """Whether lines differ in their number of cells."""
    return len({len(cells) for _, cells in lines}) > 1


def _if_quoted(path: Path, text: str) -> list[Line] | None:
    """Rows of a tsv file with cells in quotes, as Excel writes it; ``None`` where these are malformed or ragged too."""
    try:
        lines = list(_quoted(path, text, "\t"))
    except ValueError:
        return None
    return None if _ragged(lines) else lines


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def _quoted(path: Path, text: str, delimiter: str) -> Iterator[Line]:
    """Rows by RFC 4180, with a warning for those that look like several rows joined by a quote."""
    limit = csv.field_size_limit(_LONGEST_CELL)  # of the whole process
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    plain = _LINE_END.split(text)
    first_line, joined = 1, []
    try:
        for cells in lines:
            if cells:
                yield first_line, cells
            own = plain[first_line - 1 : lines.line_num]
            if len(own) > 1 and len(cells) > 1 and all(len(cells) == len(line.split(delimiter)) for line in own):
                joined.append(first_line)
            first_line = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {first_line}: {error}: quote the whole cell and double the quotes in it, or none"
        ) from error
    finally:
        csv.field_size_limit(limit)
    if joined:
        log.warning(
            "%s: %d rows hold several lines in quotes that each look like a row, the first from line %d: where such a "
            "quote belongs to the text, double it and quote the whole cell",
            path,
            len(joined),
            joined[0],
        )


def _rows(path: Path, lines: Iterable[Line], delimiter: str) -> Iterator[Row]:
    """Rows of a file from its lines, of which the first is the header."""
    rows = iter(lines)
    number, names = next(rows, (1, []))
    header = _header(path, number, names, delimiter)
    for number, cells in rows:
        if len(cells) != len(header):
            name = "tabs" if delimiter == "\t" else "commas"
            raise ValueError(
                f"{path}, line {number}: {len(cells)} fields, the header has {len(header)}: "
                f"fill the row, or quote the cells that hold {name}, line breaks or quotes"
            )
        yield Row(dict(zip(header, cells, strict=True)), str(path), number)


def _header(path: Path, number: int, names: Sequence[str], delimiter: str) -> list[str]:
    """Names of the columns, of which no two are equal."""
    header = [name.strip() for name in names]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"{path}, line {number}: two columns are called '{twice[0]}': rename one")
    other = next((mark for mark in ";\t|," if len(header) == 1 and mark != delimiter and mark in names[0]), None)
    if other:
        raise ValueError(
            f"{path}, line {number}: one column called {names[0]!r}: cells are separated by {delimiter!r} in a "
            f"'{path.suffix}' file, and these seem to be by {other!r}: "
            + ("call the file .tsv" if other == "\t" else "call the file .csv" if other == "," else "save it anew")
        )
    return header


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_LINE_END.split(_text(path)), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: two values for {error}: keep one") from error
        except RecursionError as error:
            raise ValueError(f"{path}, line {number}: nested too deeply: write plain columns") from error
        except ValueError as error:
            most = sys.get_int_max_str_digits()
            raise ValueError(f"{path}, line {number}: a number of more than {most} digits: write it as text") from error
        if not isinstance(cells, dict):
            raise ValueError(f"{path}, line {number}: each line must be one JSON object, got {type(cells).__name__}")
        yield Row(cells, str(path), number)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated names, of which json would keep the last value.

    Raises:
        KeyError: Holds the repeated name.
    """
    cells: dict[str, Any] = {}
    for name, value in pairs:
        if name in cells:
            raise KeyError(name)
        cells[name] = value
    return cells


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.lib  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        names = pyarrow.parquet.read_schema(path).names  # of two columns of one name, reading both fails
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{path}: two columns are called '{twice[0]}': rename one")
        for number, cells in enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1):
            yield Row(cells, str(path), number, "row")
    except pyarrow.lib.ArrowException as error:
        raise ValueError(f"{path}: not a readable parquet file: {error}") from error


def _txt(path: Path) -> Iterator[Row]:
    yield Row({"text": _LINE_END.sub("\n", _text(path))}, str(path), 1)


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".txt": _txt,
}
