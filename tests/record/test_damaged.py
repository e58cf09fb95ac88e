"""Every reader of records bears lines, files and folders that are damaged or hostile, and names them in a line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp import report
from slimexp.analysis.section import load
from slimexp.record import record

pytestmark = pytest.mark.fast

ReadByAll = Callable[[Path, pytest.CaptureFixture[str]], str]

LINES: dict[str, tuple[bytes, str]] = {  # a line that is no record, and the reason in the warning
    "NaN": (b'{"trivial": NaN}', "it holds NaN"),
    "infinity": (b'{"trivial": -Infinity}', "it holds -Infinity"),
    "5,000 digits": (b'{"seed": ' + b"9" * 5_000 + b"}", "limit"),
    "deep": (b'{"config": ' + b"[" * 90_000, "nested deeper"),
    "a name twice": (b'{"key": "a", "key": "b"}', "it holds 'key' twice"),
    "a name twice within": (b'{"config": {"pipeline": {"a": 1, "a": 2}}}', "it holds 'a' twice"),
    "half a character": (b'{"name": "\\ud800"}', "surrogates not allowed"),
    "binary": (bytes(range(128, 256)), "can't decode"),
    "zeros": (b"\0" * 100, "no JSON"),
    "UTF-16": ('{"key": "a"}'.encode("utf-16"), "can't decode"),
    "a list": (b"[]", "must be a JSON object, got list"),
    "a number": (b"1", "must be a JSON object, got int"),
    "too long": (b"x" * 200_000, "it has more than 100000 bytes"),
    "escapes": (b"\x1b[2J\x9b", "can't decode"),
}


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize(("line", "reason"), LINES.values(), ids=LINES.keys())
def test_a_line_that_is_no_record_is_named(
    read_by_all: ReadByAll,
    line: bytes,
    reason: str,
    rows: list[dict[str, Any]],
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "LONGEST", 100_000)
    first, *others = (json.dumps(row).encode() for row in rows)
    (runs / record.FILE).write_bytes(b"\xef\xbb\xbf" + first + b"\r\n" + line + b"\r\n" + b"\r\n".join(others))
    (warning,) = read_by_all(runs, capsys).splitlines()
    assert warning.startswith(f"warning: skipped line 2 of {runs}") and reason in warning
    assert [row.key for row in record.read(runs, quiet=True)] == ["dense", "good", "bad"]


def test_reasons_of_a_file_of_junk_do_not_fill_the_terminal(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    junk = "".join(json.dumps({"a" * count: 1, "b": 1})[:-1] + ', "b": 2}\n' for count in range(1, 400))
    other = "".join(f'{{"{"a" * count}": 1, "{"a" * count}": 2}}\n' for count in range(1, 50))
    (tmp_path / record.FILE).write_text(junk + other)
    assert record.read(tmp_path) == []
    assert len(recwarn) == record.REASONS + 1
    assert "line 1 and 398 more" in str(recwarn[0].message) and "40 more lines" in str(recwarn[-1].message)


PLACES: dict[str, Callable[[Path], object]] = {  # what stands in the place of a record file
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
}


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES.keys())
def test_what_is_no_file_is_named_and_never_waited_for(
    read_by_all: ReadByAll,
    make: Callable[[Path], object],
    rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = tmp_path / "runs"
    (runs / "loop").mkdir(parents=True)
    (runs / "loop" / "again").symlink_to(runs)
    make(runs / "loop" / record.FILE)
    (runs / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (warning,) = read_by_all(runs, capsys).splitlines()
    assert warning.startswith(f"warning: skipped {runs / 'loop' / record.FILE}: ")
    assert report.main([str(runs / "loop" / record.FILE), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no ")


def test_a_folder_that_cannot_be_read_is_named(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    scan = os.scandir

    def refused(path: Any) -> Any:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert len(load(tmp_path)) == 1
    assert capsys.readouterr().err == f"warning: skipped folder {tmp_path / 'shut'}: Permission denied\n"


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("length", [1, 2, 3, 250])
@pytest.mark.parametrize("merged", [False, True])
def test_a_record_may_be_its_own_ancestor(
    read_by_all: ReadByAll,
    length: int,
    merged: bool,
    rows: list[dict[str, Any]],
    runs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At once, or by a later record of the same key."""
    *sound, bad = rows
    ring = [{**bad, "key": f"k{index}", "parent": f"k{(index + 1) % length}"} for index in range(length)]
    if merged:
        ring = [{**ring[0], "parent": "dense", "time": "2025-01-01T00:00:00+00:00"}, *ring]
    (runs / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in [*ring, *sound]))
    assert read_by_all(runs, capsys) == ""


@pytest.mark.parametrize(
    "words", ["$x_{$", "$\\undefined$", "x" * 10_000, "a\nb\n" * 500, "\0\x1b", "\U0001f600 \u4f60", "_hidden", "%s{}"]
)
def test_hostile_words_are_drawn(
    words: str,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """As label, title and run, published or not; unless they are no name, as stage and metric."""
    data = {"_target_": "slimexp.data.spelling.Spelling", "note": words}
    lines: list[dict[str, Any]] = []
    for row in rows:
        config = {"data": data, "pipeline": {row["stage"]: {"note": words, "key": row["key"]}}}
        lines += [{**row, "config": config, "name": words}]
    if words.isprintable():
        named = words[:1000]
        lines += [{**rows[1], "key": "n", "stage": named, "metrics": {named: 0.02, "cer": 0.02}, "headline": named}]
        lines[-1] |= {"baseline": {named: 0.01}, "trivial": 1.0}
    lines += [{**rows[1], "key": "p", "config": {"data": data | {"note": ""}}}]
    (tmp_path / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in lines))
    (tmp_path / "published.jsonl").write_text(
        json.dumps({"label": words, "cer": 0.02, "disk_mb": 3, "corpus": None}) + "\n"
    )
    assert report.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and not recwarn.list
    assert all(character.isprintable() for character in out if character != "\n")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_more_corpora_than_a_picture_holds_are_in_the_page(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimexp.analysis.plot.MOST", 2)
    lines = [{**rows[0], "key": str(rate), "config": {"data": {"rate": rate}}} for rate in range(4)]
    (tmp_path / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert report.main([str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "report.json").read_text())) == 4


EXTREMES = [
    {"cer": 1e100, "disk_mb": 1e100, "latency_p50_ms": 1e100},
    {"cer": 1e-320, "disk_mb": 1e-320},
    {"cer": -1e100, "disk_mb": 0},
]


@pytest.mark.parametrize("metrics", EXTREMES, ids=str)
@pytest.mark.parametrize("baseline", [None, {"cer": 1e-320, "disk_mb": 1e-320}], ids=str)
def test_extreme_figures_are_drawn(
    metrics: dict[str, float], baseline: dict[str, float] | None, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    lines = [*rows, {**rows[2], "key": "far", "metrics": metrics, "baseline": baseline or rows[2]["baseline"]}]
    (tmp_path / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert (
        report.main([str(tmp_path), "--z", "latency_p50_ms"] if "latency_p50_ms" in metrics else [str(tmp_path)]) == 0
    )
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
