"""One damaged record ends no reader: what is wrong is told in a line, and everything else is shown."""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from slimexp import clean, report, select
from slimexp.analysis.section import load
from slimexp.page.server import LivePage
from slimexp.record import record
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

HOSTILE = "\x1b[2J\x9b\u202e$\\frac{$</script><script>hacked()</script>\n=cmd|' /C'!A0"
DEEP: Any = None
for _ in range(200):
    DEEP = {"x": [DEEP]}

ANY: dict[str, Any] = {  # for every field
    "missing": ...,
    "null": None,
    "list": [1, [2]],
    "object": {"a": {"b": [None]}},
    "number": 7,
    "flag": True,
    "NaN": float("nan"),
    "huge": 10**400,
    "hostile text": HOSTILE,
    "deep": DEEP,
}
NESTED: dict[str, list[Any]] = {  # field -> values of its type that hold something wrong
    "time": ["2026-01-01", "now", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-13-01T00:00:00Z"],
    "name": ["", "x" * 10_000, "../../x", "\0"],
    "stage": ["", "x" * 10_000, "dense", "start", "a.b", "model", "save_dtype", "trainer", "\ud800", "_hidden", "=1"],
    "key": ["", "good", "dense", "x" * 10_000, "\n"],
    "parent": ["", "bad", "good", "unknown", "dense"],
    "technique": ["", "dense", "x" * 10_000],
    "seed": [-1, 2**63, 1.5, "0", 2**62],
    "overrides": [[1], [None], [[]], [HOSTILE], ["x" * 200_000], [{"a": 1}]],
    "config": [
        {},
        {"data": "spelling"},
        {"data": []},
        {"data": {"_target_": 5}},
        {"data": {"_target_": HOSTILE, "rate": HOSTILE}},
        {"data": {"a.b": 1, "a": {"b": "x"}}},
        {"pipeline": []},
        {"pipeline": {"prune": 5}},
        {"pipeline": {"prune": None}},
        {"pipeline": {"prune": {"sparsity": HOSTILE}}},
        {"pipeline": {"prune": {"x" * 100_000: 1}}},
        {"pipeline": {"prune": {".".join("a" * 9_000): 1}}},
        {"pipeline": {"prune": {"label": "x" * 10_000}}},
        {"pipeline": {"prune": {"bits": 4, "allocation": "even"}}},
        {"pipeline": {"prune": {"bits": 4, "allocation": {"widths": 5}}}},
        {"pipeline": {"prune": {"bits": 4, "allocation": {"widths": [None, {}]}}}},
        {"model": "t5", "pipeline": {}},
        {"model": {"path": HOSTILE}, "baseline": 3},
        {"trainer": 5},
        {"trainer": None},
        {"measure": []},
        {"measure": {"task": "x"}},
        {"measure": {"task": {"split": ["a"]}}},
        {"measure": {"sensitivity": {}}},
        {"measure": {"sensitivity": {"loss": 1, "importance": [], "rows": {}, "sparsity": "much"}}},
        {"measure": {"sensitivity": {"loss": {"_target_": 1}, "importance": {"_target_": 1}, "sparsity": []}}},
        {"logger": "wandb"},
        {"save_dtype": HOSTILE},
        {"wide": list(range(50_000))},
    ],
    "git": [{}, {"commit": 5, "dirty": False}, {"commit": None, "dirty": True}, {"commit": "a", "dirty": "no"}],
    "versions": [{"torch": 2}, {"torch": None}, {HOSTILE: "1"}, {"": ""}],
    "hardware": [{}, {"cpu": 5}, {"gpu": "none"}, {"gpu": [None]}, {"cores": "8"}, {"memory_gb": "1"}, {"more": [{}]}],
    "kernel": ["", "x" * 200_000],
    "headline": ["", "disk_mb", "unknown", "kept", "cer/layer", "x" * 10_000],
    "direction": ["up", "MIN", ""],
    "metrics": [
        {},
        {"cer": None},
        {"cer": "0.1"},
        {"cer": [0.1]},
        {"cer": {"mean": 0.1}},
        {"cer": True},
        {"cer": float("inf")},
        {"cer": 10**400},
        {"cer": 1e308, "disk_mb": 1e308},
        {"cer": 1e100, "disk_mb": 1e100, "latency_p50_ms": 1e100},
        {"cer": 1e-320, "disk_mb": 1e-320},
        {"cer": -1e99, "disk_mb": 1e99, "params_live": 3, "params_nonzero": -2, "weights_mb": 1},
        {"cer": 0.02, "disk_mb": -1.0},
        {"cer": -1e99, "disk_mb": 1e99},
        {"cer": 0.02, "cer_stderr": -1e99, "disk_mb": 1.0},
        {"cer": 0.02, "disk_mb": 1.0, "latency_ratio": 1, "latency_ratio_low": 9, "latency_ratio_high": -9},
        {"cer": 0.02, "params_live": 1e-320, "weights_mb": 1e99, "params_nonzero": 1e99},
        {"cer": 0.02, "task_examples": 1e99},
        {"": 1.0},
        {"/": 1.0, "bits/": 1.0, "/bits": 2.0, "rounded_to_²_nats/x": 1.0},
        {HOSTILE: 1.0},
        {"$x$_{": 1.0, "cer": 0.02},
        {"x" * 10_000: 1.0},
        {"_stderr": 0.1, "cer_stderr_stderr": 1.0, "cer": 0.02},
    ],
    "directions": [{"cer": "up"}, {"cer": None}, {"cer": 1}, {HOSTILE: "min"}, {"cer": "max"}],
    "baseline": [{}, {"cer": None}, {"cer": float("nan")}, {"cer": 1e-320, "disk_mb": 1e-320}, {"cer": 1e100}],
    "baseline_key": ["", "bad", "unknown"],
    "trivial": [0, -1e100, 1e100, 1e-320, 0.015, "0.1", True, float("-inf")],
    "seconds": [{"train": -1}, {"train": None}, {"train": "1"}, {"train": True}, {"train": 1e100}, {"train": 1e300}],
    "reused": [0, 1, "false"],
    "artifact": ["/etc", "../..", "a/../../../x", "\0", "x" * 200_000, "", ".", "~root"],
    "curves": ["/dev/zero", "/etc/passwd", "../secret.jsonl", "run/../../secret.jsonl", "out.jsonl", "", ".", "pipe"],
    "schema": [0, 2, -1, "1", 1.0, True, 10**400],
}  # fmt: skip
DAMAGES = [
    *((field.name, f"{field.name} {what}", value) for field in fields(Record) for what, value in ANY.items()),
    *((name, f"{name} {index}", value) for name, values in NESTED.items() for index, value in enumerate(values)),
]
GOOD = "quantize"


@pytest.fixture(scope="module")
def rows(make_record: Callable[..., Record]) -> list[dict[str, Any]]:
    """A dense model, a good one, and one to damage; without seals, which a hand that writes lines can leave out."""
    dense = {"cer": 0.015, "disk_mb": 16.0}
    good = {"data": {"_target_": "slimexp.data.spelling.Spelling"}, "pipeline": {"quantize": {"bits": 8}}}
    bad = {"data": {"_target_": "slimexp.data.spelling.Spelling"}, "pipeline": {"prune": {"sparsity": 0.5}}}
    made = [
        make_record("dense", stage="dense", technique="dense", metrics=dense, baseline=dense, config=good),
        make_record("good", stage="quantize", metrics={"cer": 0.02, "disk_mb": 4.0}, baseline=dense, config=good),
        make_record("bad", parent="dense", metrics={"cer": 0.03, "disk_mb": 8.0}, baseline=dense, config=bad),
    ]
    sealed = [json.loads(one.to_json()) for one in made]
    return [{name: value for name, value in row.items() if name != "sha256"} for row in sealed]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a secret beside it, and what leads to it; its records are each test's own."""
    folder = tmp_path_factory.mktemp("damaged")
    runs = folder / "runs"
    runs.mkdir()
    (folder / "secret.jsonl").write_text('{"step": 0, "secret": 4242.5}\n')
    (runs / "out.jsonl").symlink_to(folder / "secret.jsonl")
    os.mkfifo(runs / "pipe")
    return runs


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pictures are left out: a dozen are enough, see ``test_hostile_words_are_drawn``."""
    monkeypatch.setattr(report, "write_png", lambda found, path: path.touch())


def read_by_all(runs: Path, capsys: pytest.CaptureFixture[str], *, good: str = GOOD) -> str:
    """Every reader ends with a status of its own and shows what is good; gives what was said on stderr."""
    statuses = [report.main([str(runs), "--out", str(runs.parent / "out")])]
    table = capsys.readouterr()
    statuses.append(select.main([str(runs), "max_disk_mb=5"]))
    chosen = capsys.readouterr()
    statuses.append(clean.main([str(runs), "--unfinished", "--dominated"]))
    cleaned = capsys.readouterr()
    assert statuses[0] == 0 and statuses[1] in (0, 1) and statuses[2] == 0, (statuses, table.err, cleaned.err)
    assert good in table.out and "spelling" in chosen.out
    assert good in (runs.parent / "out" / "report.csv").read_text(encoding="utf-8")
    assert good in (runs.parent / "out" / "report.json").read_text(encoding="utf-8")
    page = (runs.parent / "out" / "pareto.html").read_text(encoding="utf-8")
    assert good in page and "<script>hacked" not in page and "4242.5" not in page
    live = LivePage(runs, lambda: load(runs), None).snapshot()
    assert good in live.data.decode() and b"<script>hacked" not in live.page
    said = [table.out, table.err, chosen.out, chosen.err, cleaned.out, cleaned.err]
    assert all(one.isprintable() for text in said for one in text if one != "\n")
    assert "Traceback" not in "".join(said)
    return table.err


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize(("field", "value"), [pytest.param(name, value, id=what) for name, what, value in DAMAGES])
def test_a_damaged_field_ends_no_reader(
    field: str, value: Any, rows: list[dict[str, Any]], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *sound, bad = copy.deepcopy(rows)
    bad[field] = value
    if value is ...:
        del bad[field]
    (runs / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in [*sound[:1], bad, *sound[1:]]))
    err = read_by_all(runs, capsys)
    told = [line for line in err.splitlines() if line.startswith(f"warning: skipped line 2 of {runs}")]
    assert len(err.splitlines()) == len(told) and all(len(line) < 1_200 for line in told)


LINES: dict[str, tuple[bytes, str]] = {  # a line that is no record, and what is told of it
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
@pytest.mark.parametrize(("line", "told"), LINES.values(), ids=LINES.keys())
def test_a_line_that_is_no_record_is_named(
    line: bytes,
    told: str,
    rows: list[dict[str, Any]],
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "LONGEST", 100_000)
    first, *others = (json.dumps(row).encode() for row in rows)
    (runs / record.FILE).write_bytes(b"\xef\xbb\xbf" + first + b"\r\n" + line + b"\r\n" + b"\r\n".join(others))
    (said,) = read_by_all(runs, capsys).splitlines()
    assert said.startswith(f"warning: skipped line 2 of {runs}") and told in said
    assert [one.key for one in record.read(runs, quiet=True)] == ["dense", "good", "bad"]


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
    make: Callable[[Path], object], rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    (runs / "loop").mkdir(parents=True)
    (runs / "loop" / "again").symlink_to(runs)
    make(runs / "loop" / record.FILE)
    (runs / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (said,) = read_by_all(runs, capsys).splitlines()
    assert said.startswith(f"warning: skipped {runs / 'loop' / record.FILE}: ")
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
    length: int, merged: bool, rows: list[dict[str, Any]], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, or by a later record of the same key."""
    *sound, bad = rows
    ring = [{**bad, "key": f"k{index}", "parent": f"k{(index + 1) % length}"} for index in range(length)]
    if merged:
        ring = [{**ring[0], "parent": "dense", "time": "2025-01-01T00:00:00+00:00"}, *ring]
    (runs / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in [*ring, *sound]))
    assert read_by_all(runs, capsys) == ""


def test_time_is_told_by_the_clock_and_not_by_its_text(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    times = [
        "2026-01-01T09:00:00+09:00",
        "2025-12-31T23:59:00+00:00",
        "2026-01-01T00:00:00.5Z",
    ]  # the first is midnight
    made = [{**rows[0], "key": str(index), "time": time} for index, time in enumerate(times)]
    (tmp_path / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in made))
    assert [one.key for one in record.read(tmp_path)] == ["1", "0", "2"]


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
    made: list[dict[str, Any]] = []
    for row in rows:
        config = {"data": data, "pipeline": {row["stage"]: {"note": words, "key": row["key"]}}}
        made += [{**row, "config": config, "name": words}]
    if words.isprintable():
        named = words[:1000]
        made += [{**rows[1], "key": "n", "stage": named, "metrics": {named: 0.02, "cer": 0.02}, "headline": named}]
        made[-1] |= {"baseline": {named: 0.01}, "trivial": 1.0}
    made += [{**rows[1], "key": "p", "config": {"data": data | {"note": ""}}}]
    (tmp_path / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in made))
    (tmp_path / "theirs.jsonl").write_text(
        json.dumps({"label": words, "cer": 0.02, "disk_mb": 3, "corpus": None}) + "\n"
    )
    assert report.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == "" and not recwarn.list and all(one.isprintable() for one in said.out if one != "\n")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_more_corpora_than_a_picture_holds_are_in_the_page(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimexp.analysis.plot.MOST", 2)
    made = [{**rows[0], "key": str(rate), "config": {"data": {"rate": rate}}} for rate in range(4)]
    (tmp_path / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in made))
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
    made = [*rows, {**rows[2], "key": "far", "metrics": metrics, "baseline": baseline or rows[2]["baseline"]}]
    (tmp_path / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in made))
    assert (
        report.main([str(tmp_path), "--z", "latency_p50_ms"] if "latency_p50_ms" in metrics else [str(tmp_path)]) == 0
    )
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
