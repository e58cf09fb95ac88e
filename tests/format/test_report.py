"""The figures of an export go with the record of the stage that made the model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimexp.format.report import Report, add_to_record
from slimexp.format.verification import Agreement
from slimexp.record import record

AGREEMENT = Agreement(gap=0.002, rms=0.001, spread=2.0, tokens=20, same_tokens=20, lead=0.0)
SPEED = {
    "threads": 1.0,
    "forward_ms": 2.0,
    "forward_ms_pytorch": 4.0,
    "forward_ratio": 0.5,
    "forward_ratio_low": 0.4,
    "forward_ratio_high": 0.6,
}


def report(**changes: Any) -> Report:
    made = Report(
        format="onnx",
        artifact="a",
        disk_mb=1.5,
        seconds=2.0,
        facts={"opset": 21},
        agreement=AGREEMENT,
        as_run=None,
        speed=SPEED,
    )
    return replace(made, **changes)


@pytest.fixture
def runs(tmp_path: Path, make_record: Callable[..., Any]) -> Path:
    """A runs folder with the record of one artifact."""
    (tmp_path / "run" / "prune-a" / "artifact").mkdir(parents=True)
    record.append(tmp_path / record.FILE, make_record("a"))
    return tmp_path


def test_readers_see_one_record_with_the_figures_of_both(runs: Path) -> None:
    (before,) = record.read(runs)
    rough = replace(AGREEMENT, gap=0.2)
    assert add_to_record(runs / "run" / "prune-a" / "artifact", report(as_run=rough)) == runs / record.FILE
    add_to_record(runs / "run" / "prune-a" / "artifact", report(format="gguf", disk_mb=1.0, speed={}))
    (after,) = record.read(runs)
    assert after.metrics == before.metrics | {
        "onnx_disk_mb": 1.5,
        "onnx_logit_gap": 0.001,
        "onnx_logit_gap_as_run": 0.1,
        **{f"onnx_{name}": value for name, value in SPEED.items()},
        "gguf_disk_mb": 1.0,
        "gguf_logit_gap": 0.001,
    }
    assert after.directions["onnx_forward_ms"] == "min" and after.directions["cer"] == "min"
    assert (after.baseline, after.config, after.headline) == (before.baseline, before.config, before.headline)


def test_copies_of_one_model_are_one(tmp_path: Path, make_record: Callable[..., Any]) -> None:
    for run, day in ("first", 1), ("second", 2):  # of which each has its own copy of the dense model
        (tmp_path / run / "dense-d" / "artifact").mkdir(parents=True)
        of = {"artifact": f"{run}/dense-d/artifact", "time": f"2026-01-0{day}T00:00:00+00:00", "name": run}
        record.append(tmp_path / record.FILE, make_record("d", **of))
    assert add_to_record(tmp_path / "first" / "dense-d" / "artifact", report(artifact="d")) == tmp_path / record.FILE
    (after,) = record.read(tmp_path)
    assert after.metrics["onnx_forward_ms"] == 2.0 and after.name == "second"


def test_a_model_of_no_run(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "run" / "prune-b" / "artifact"
    other.mkdir(parents=True)
    assert add_to_record(other, report(artifact="b")) is None
    assert len((runs / record.FILE).read_text().splitlines()) == 1


def test_the_report_in_words_and_as_a_file() -> None:
    text = str(report())
    assert text.splitlines() == [
        "1.50 MB, logits differ by at most 0.002, 0.001 of their standard deviation, 20 of 20 greedy tokens the same",
        "forward pass: 0.50x PyTorch's time (0.40 to 0.60, pairs in turns); medians 2 and 4 ms",
    ]
    assert json.loads(report().to_json())["facts"] == {"opset": 21}
