"""Records: complete lines under parallel writers and kills, strict numbers."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimexp.record import record
from slimexp.record.record import Record, append, read

pytestmark = pytest.mark.fast


def make(key: str = "a", **changes: Any) -> Record:
    base = Record(
        time="2026-01-01T00:00:00+00:00",
        name="run",
        stage="prune",
        key=key,
        parent=None,
        technique="Prune",
        seed=0,
        overrides=["seed=0"],
        config={"seed": 0, "pipeline": {"prune": {"sparsity": 0.5}}},
        git=None,
        versions={"torch": "2"},
        hardware={"cpu": "x", "gpu": []},
        headline="cer",
        direction="min",
        metrics={"cer": 0.02, "params_live": 3},
        directions={"cer": "min"},
        baseline={"cer": 0.015},
        baseline_key="dense",
        trivial=0.077,
        seconds={"train": 1.0},
        reused=False,
        artifact="run/prune-a/artifact",
        curves=None,
        kernel="float32 matmul",
    )
    return replace(base, **changes)


def test_a_record_survives_a_line_of_json() -> None:
    one = make(config={"text": "line\nbreak", "list": [1, {"a": None}]})
    assert "\n" not in one.to_json()
    assert Record.from_json(one.to_json()) == one


def test_a_record_is_dense_by_key_and_not_by_figures() -> None:
    assert not make(metrics={"cer": 0.015}, baseline={"cer": 0.015}).dense
    assert make("dense").dense and not make(baseline_key=None).dense


def test_numbers_of_numpy_become_plain() -> None:
    line = make(metrics={"cer": np.float32(0.5), "count": np.int64(3)}).to_json()
    assert json.loads(line)["metrics"] == {"cer": 0.5, "count": 3}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("group", ["metrics", "baseline", "seconds"])
def test_a_number_that_is_not_finite_is_named_and_not_written(tmp_path: Path, group: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{group}\.wer"):
        append(tmp_path / "records.jsonl", make(**{group: {"cer": 0.1, "wer": bad}}))
    with pytest.raises(ValueError, match="trivial"):
        append(tmp_path / "records.jsonl", make(trivial=bad))
    assert not (tmp_path / "records.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metrics": {"ppl": 1e200}}, r"metrics\.ppl must be a number of at most 1e\+100, got 1e\+200"),
        ({"baseline": {"ppl": 1e101}}, r"baseline\.ppl must be"),
        ({"trivial": 1e200}, "trivial must be"),
        ({"seconds": {"train": -1.0}}, r"seconds\.train must be"),
        ({"metrics": {"disk_mb": -1.0}}, r"metrics\.disk_mb must be >= 0"),
        ({"config": {"note": "x" * 100_001}}, "a text must have at most"),
        ({"name": "\ud800"}, "surrogates"),
    ],
)
def test_what_no_reader_would_take_is_not_written(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        append(tmp_path / "records.jsonl", make(**changes))
    assert not (tmp_path / "records.jsonl").exists()


@pytest.mark.parametrize("to", ["other.txt", "nowhere"])
def test_no_record_is_appended_through_a_link(tmp_path: Path, to: str) -> None:
    (tmp_path / "other.txt").write_text("other")
    path = tmp_path / record.FILE
    path.symlink_to(to)
    with pytest.raises(ValueError, match=r"records\.jsonl must be a file"):
        record.check_place(path)
    with pytest.raises(OSError):
        append(path, make())
    assert (tmp_path / "other.txt").read_text() == "other" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("old", "new"), [("0.02", "0.03"), ("prune", "prunf"), ('"seed": 0', '"seed": 1')])
def test_a_line_that_was_changed_is_skipped(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / record.FILE
    append(path, make("a"))
    append(path, make("b"))
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first.replace(old, new, 1) + second)
    with pytest.warns(UserWarning, match="skipped line 1 of .*: it has other content than was written"):
        assert [row.key for row in read(path)] == ["b"]
    assert record.append_again(path, make("a")) and not record.append_again(path, make("b"))


def test_a_file_that_is_too_large_is_skipped_with_its_size(tmp_path: Path) -> None:
    append(tmp_path / record.FILE, make())
    (tmp_path / "other").mkdir()
    with (tmp_path / "other" / record.FILE).open("wb") as file:
        file.truncate(10**13)
    with pytest.warns(UserWarning, match=r"skipped .*other/records\.jsonl: it has 10000\.0 GB, of at most 4\.3"):
        assert [row.key for row in read(tmp_path)] == ["a"]


def test_a_line_without_a_seal_is_read(tmp_path: Path) -> None:
    content = json.loads(make().to_json())
    del content["sha256"]
    (tmp_path / record.FILE).write_text(json.dumps(content) + "\n")
    assert read(tmp_path) == [make()]


def test_a_configuration_may_hold_what_json_cannot_say() -> None:
    one = Record.from_json(make(config={"clip": float("inf"), "folder": Path("runs")}).to_json())
    assert one.config == {"clip": "inf", "folder": "runs"}


def test_a_folder_gives_all_records_below_it_and_the_later_of_equal_keys(tmp_path: Path) -> None:
    append(tmp_path / "one" / record.FILE, make("a", time="2026-01-03T00:00:00+00:00", seed=3))
    append(tmp_path / "two" / "deep" / record.FILE, make("a", time="2026-01-01T00:00:00+00:00", seed=1))
    append(tmp_path / "two" / "deep" / record.FILE, make("b", time="2026-01-02T00:00:00+00:00", seed=2))
    assert [(one.key, one.seed) for one in read(tmp_path)] == [("b", 2), ("a", 3)]
    append(tmp_path / "same.jsonl", make("a", seed=1))
    append(tmp_path / "same.jsonl", make("a", seed=2))
    assert [one.seed for one in read(tmp_path / "same.jsonl")] == [2]


def test_a_later_measuring_keeps_the_figures_it_did_not_take_again(tmp_path: Path) -> None:
    path = tmp_path / record.FILE
    append(path, make(metrics={"cer": 0.02, "latency_ratio": 0.8}, baseline={"cer": 0.01, "latency_ratio": 1.0}))
    append(path, make(metrics={"disk_mb": 4.0, "latency_ratio": 0.7}, baseline={"disk_mb": 8.0}, trivial=0.5, seed=1))
    (one,) = read(path)
    assert one.metrics == {"cer": 0.02, "latency_ratio": 0.7, "disk_mb": 4.0}
    assert one.baseline == {"cer": 0.01, "latency_ratio": 1.0, "disk_mb": 8.0}
    assert (one.seed, one.trivial) == (1, 0.077)


def test_training_time_survives_a_later_measuring(tmp_path: Path) -> None:
    append(tmp_path / record.FILE, make(seconds={"train": 140.0, "measure": 5.0}))
    append(tmp_path / record.FILE, make(seconds={"train": 0.0, "measure": 7.0}, reused=True))
    assert read(tmp_path)[0].seconds == {"train": 140.0, "measure": 7.0}


def test_half_a_line_is_named_skipped_and_never_merged(tmp_path: Path) -> None:
    path = tmp_path / record.FILE
    append(path, make("a"))
    with path.open("a") as file:
        file.write(make("torn").to_json()[:40])
    with pytest.warns(UserWarning, match=r"line 2 of .*records\.jsonl"):
        assert [one.key for one in read(path)] == ["a"]
    append(path, make("b"))
    with pytest.warns(UserWarning, match="line 2"):
        assert [one.key for one in read(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[1]", "JSON object"),
        ('{"schema": 1}', "lacks time"),
        ('{"schema": 9}', "newer"),
        (make().to_json().replace('"metrics": {', '"metrics": {"odd": "high", '), "metrics.odd must be a number"),
    ],
)
def test_lines_of_another_kind_are_skipped(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / record.FILE
    path.write_text(line + "\n")
    with pytest.warns(UserWarning, match=why):
        assert read(path) == []


def test_what_an_older_version_wrote_is_one_warning_that_says_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / record.FILE
    for key in ("a", "b", "c"):
        append(path, make(key))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    older = [{name: value for name, value in row.items() if name != "kernel"} for row in rows[:2]]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*older, rows[2]]))
    with pytest.warns(
        UserWarning, match=r"line 1 and 1 more of .*lacks kernel; .*resume=false writes it anew"
    ) as caught:
        assert [one.key for one in read(path)] == ["c"]
    assert len(caught) == 1


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")
    assert read(tmp_path) == []


def test_records_are_in_the_order_of_the_clock_and_not_of_the_text(tmp_path: Path) -> None:
    times = [
        "2026-01-01T09:00:00+09:00",
        "2025-12-31T23:59:00+00:00",
        "2026-01-01T00:00:00.5Z",
    ]  # the first is midnight
    for index, time in enumerate(times):
        append(tmp_path / record.FILE, make(str(index), time=time))
    assert [one.key for one in read(tmp_path)] == ["1", "0", "2"]


def append_many(path: Path, writer: int) -> None:
    for index in range(50):
        append(path, make(f"{writer}-{index}", config={"padding": "x" * 37 * index}))


def test_parallel_writers_lose_and_mix_nothing(tmp_path: Path) -> None:
    path = tmp_path / record.FILE
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(path, writer)) for writer in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    keys = [one.key for one in read(path)]
    assert sorted(keys) == sorted(f"{writer}-{index}" for writer in range(8) for index in range(50))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / record.FILE
    append(path, make("a"))
    before, write = path.read_bytes(), record.os.write
    monkeypatch.setattr(record.os, "write", lambda file, data: write(file, data[:10]))
    with pytest.raises(OSError, match="disk full"):
        append(path, make("b"))
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [None, b"", b"\n", b'{"key": "a"}\n', b"[" * 9 + b'"a"\n', b"\xff a\n"])
def test_a_record_that_was_lost_is_appended_again_and_no_other(
    make_record: Any, tmp_path: Path, damage: bytes | None
) -> None:
    path, row = tmp_path / record.FILE, make_record("a")
    if damage is not None:
        path.write_bytes(damage)
    assert record.append_again(path, row)
    assert not record.append_again(path, row)
    record.append(path, make_record("b", parent="a"))
    assert path.read_bytes().count(b"2026-01-01") == 2


def test_a_line_that_was_torn_is_no_record(make_record: Any, tmp_path: Path) -> None:
    path = tmp_path / record.FILE
    record.append(path, make_record("a"))
    path.write_bytes(path.read_bytes()[:-9])
    assert record.append_again(path, make_record("a"))
    with pytest.warns(UserWarning, match="skipped line 1"):
        assert [row.key for row in record.read(path)] == ["a"]
