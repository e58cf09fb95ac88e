"""Types and ranges of a record's fields: a damaged field ends no reader, and all other records are shown."""

import copy
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from slimexp.record import record, schema
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

ReadByAll = Callable[[Path, pytest.CaptureFixture[str]], str]

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


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize(("field", "value"), [pytest.param(name, value, id=what) for name, what, value in DAMAGES])
def test_a_damaged_field_ends_no_reader(
    read_by_all: ReadByAll,
    field: str,
    value: Any,
    rows: list[dict[str, Any]],
    runs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    *sound, bad = copy.deepcopy(rows)
    bad[field] = value
    if value is ...:
        del bad[field]
    (runs / record.FILE).write_text("".join(json.dumps(row) + "\n" for row in [*sound[:1], bad, *sound[1:]]))
    err = read_by_all(runs, capsys)
    warnings = [line for line in err.splitlines() if line.startswith(f"warning: skipped line 2 of {runs}")]
    assert len(err.splitlines()) == len(warnings) and all(len(line) < 1_200 for line in warnings)


@pytest.mark.parametrize(
    ("time", "utc"),
    [
        ("2026-01-01T09:00:00+09:00", "2026-01-01T00:00:00+00:00"),
        ("2025-12-31T23:59:00+00:00", "2025-12-31T23:59:00+00:00"),
        ("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.500000+00:00"),
    ],
)
def test_times_are_converted_to_utc(time: str, utc: str) -> None:
    assert schema.in_utc(time) == utc


@pytest.mark.parametrize("time", ["", "2026-01-01", "2026-01-01T00:00:00", 5, None])
def test_a_time_without_zone_is_refused(time: Any) -> None:
    with pytest.raises(ValueError, match="time must be an ISO 8601 time with time zone, got"):
        schema.in_utc(time)


def test_a_field_is_named_with_its_rule_and_value(make_record: Callable[..., Record]) -> None:
    row = json.loads(make_record().to_json())
    schema.check(row)
    with pytest.raises(ValueError, match=r"^config\.pipeline\.prune must be an object, got 5$"):
        schema.check({**row, "config": {"pipeline": {"prune": 5}}})
    with pytest.raises(ValueError, match=r"^artifact must be a relative path with '\.\.' at its beginning only"):
        schema.check({**row, "artifact": "a/../../x"})
