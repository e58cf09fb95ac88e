"""Formats of files, row by row."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from slimexp.data.reader import read_file

pytestmark = pytest.mark.fast


def read(path: Path, content: bytes | str) -> list[dict[str, Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [dict(row.cells) for row in read_file(path)]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_blank_lines_and_byte_order_marks(name: str, end: str, mark: str, tmp_path: Path) -> None:
    lines = {
        "a.csv": ["text, label ", "a\u2028b,1", "", "c,2"],  # blanks around names, a line separator within a text
        "a.tsv": ["text\t label ", "a\u2028b\t1", "", "c\t2"],
        "a.jsonl": ['{"text": "a\u2028b", "label": "1"}', "", '{"text": "c", "label": "2"}'],
    }[name]
    rows = read(tmp_path / name, mark + end.join(lines) + end)
    assert rows == [{"text": "a\u2028b", "label": "1"}, {"text": "c", "label": "2"}]
    assert [row.place for row in read_file(tmp_path / name)][-1].endswith("line 3" if name == "a.jsonl" else "line 4")


CELLS = [["text", "label"], ['a "quoted", two-\nline\tcell', "1"], ['"', "2"], ['x"y', '""'], ["", "3"]]


@pytest.mark.parametrize(("name", "dialect"), [("a.csv", "excel"), ("a.tsv", "excel-tab")])
def test_what_excel_and_pandas_write_is_read_as_it_was(name: str, dialect: str, tmp_path: Path) -> None:
    stream = io.StringIO()
    csv.writer(stream, dialect).writerows(CELLS)
    assert read(tmp_path / name, stream.getvalue()) == [dict(zip(CELLS[0], row, strict=True)) for row in CELLS[1:]]


@pytest.mark.parametrize(
    "cells",
    [
        ['"film" is awful', 'he said "no"', '"quoted"'],
        ['"opens and never closes', "plain", 'closes here"'],  # by RFC 4180 one cell of three rows
        ['"', 'a"', '""', '"""'],
    ],
)
def test_quotes_of_a_tsv_are_text(cells: list[str], tmp_path: Path) -> None:
    lines = [f"{cell}\t{number}" for number, cell in enumerate(cells)]
    rows = read(tmp_path / "a.tsv", "\n".join(["text\tlabel", *lines]))
    assert rows == [{"text": cell, "label": str(number)} for number, cell in enumerate(cells)]


def test_quotes_of_a_tsv_are_taken_off_where_all_are_excels(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.tsv", 'text\tlabel\n"she said ""no"""\t1\nplain\t2\n')
    assert [row["text"] for row in rows] == ['she said "no"', "plain"]


def test_a_last_cell_of_several_lines_is_one_cell(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.tsv", 'label\ttext\n1\t"one\ntwo"\n2\tthree\n')
    assert [row["text"] for row in rows] == ["one\ntwo", "three"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_cell_may_be_long(name: str, tmp_path: Path) -> None:
    text = "word " * 40_000
    content = f'{{"text": "{text}"}}' if name == "a.jsonl" else f"text\n{text}\n"
    assert read(tmp_path / name, content) == [{"text": text}]


def test_rows_that_a_quote_may_have_joined_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read(tmp_path / "a.csv", 'text,label\n"opens,1\nb,2\ncloses",3\nd,4\n')) == 2
    assert "1 rows hold several lines in quotes that each look like a row, the first from line 2" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\na,b\nc\n", "line 3: 1 fields, the header has 2"),
        ("a.csv", b"text,label\na,b\nc,d,e\n", "line 3: 3 fields, the header has 2"),
        ("a.csv", b'text,label\n"a\nb",c\nd\n', "line 4: 1 fields"),
        ("a.csv", b'text,label\n"word" said,b\n', "line 2: .*quote the whole cell and double the quotes in it"),
        ("a.csv", b'text,label\na,b\n"never closed,b\nc,d\n', "line 3: unexpected end of data"),
        ("a.csv", b"text;label\na;b\n", "line 1: one column called 'text;label': .* by ';'"),
        ("a.csv", b"text\tlabel\na\tb\n", "line 1: one column .*call the file .tsv"),
        ("a.tsv", b"text,label\na,b\n", "line 1: one column .*call the file .csv"),
        ("a.tsv", b'text\tlabel\n"a\tb\nc\nd\te\n', "line 3: 1 fields, the header has 2"),
        ("a.csv", b"text,label, text\na,b,c\n", "line 1: two columns are called 'text'"),
        ("a.tsv", b"text\ttext\na\tb\n", "line 1: two columns are called 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b", "text": "c"}\n', "line 2: two values for 'text'"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": ' + b"9" * 5000 + b"}\n",
            "line 2: a number of more than 4300 digits: write",
        ),
        ("a.jsonl", b"[" * 100_000, "line 1: nested too deeply: write plain columns"),
        ("a.jsonl", b'{"text": "a"}\n"b"\n', "line 2: each line must be one JSON object, got str"),
        ("a.jsonl", b'[{"text": "a"}]\n', "line 1: each line must be one JSON object, got list"),
        ("a.jsonl", b'{"text": "a"\n', "line 1: not JSON: .* at column"),
        ("a.csv", b"text\na\nb\xe9\n", r"line 3: not UTF-8 text \(.* at byte 8\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "line 2: not UTF-8 text"),
        ("a.txt", b"a\r\nb\xe9", "line 2: not UTF-8 text"),
        ("a.csv", "text,label\n".encode("utf-16"), "the file is UTF-16"),
        ("a.csv", b"text\na\0b\n", "line 2: a NUL character"),
        *((name, b"", "the file holds no rows") for name in ("a.csv", "a.tsv", "a.jsonl")),
        ("a.csv", b"text,label\n", "the file holds no rows"),
        ("a.json", b"[]", "cannot read '.json' files, .*one JSON object per line"),
        ("a.csv.gz", b"", "cannot read '.gz' files, .*unpack it"),
        ("a.xlsx", b"", "cannot read '.xlsx' files, .*save the sheet as CSV"),
        ("a", b"", "cannot read '' files, only .csv"),
    ],
)
def test_refused_by_file_and_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}[,:] ?{message}"):
        read(tmp_path / name, content)


def test_refused_parquet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.parquet: not a readable parquet file"):
        read(tmp_path / "a.parquet", b"PAR0")
