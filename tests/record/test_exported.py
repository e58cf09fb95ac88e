"""Figures of exports are known by their names, and those of measures are none."""

import pytest

from slimexp.record.exported import DIRECTIONS, TITLES, exported, speeds, way_to

pytestmark = pytest.mark.fast

METRICS = ["disk_mb", "decode_tokens_per_s", "latency_threads"]
ONNX = ["onnx_logit_gap", "onnx_disk_mb", "onnx_forward_ms", "onnx_forward_ratio", "onnx_forward_ratio_low"]
GGUF = ["gguf_logit_gap", "gguf_forward_ms", "gguf_tokens_per_s", "gguf_threads"]


def test_a_format_is_known_by_its_gap() -> None:
    found = exported([*METRICS, *ONNX, *GGUF])
    assert found.keys() == {*ONNX[:-1], *GGUF}  # the end of an interval is shown with its figure
    assert found["onnx_disk_mb"] == ("onnx", "disk_mb")
    assert found["gguf_tokens_per_s"].title == "gguf greedy decoding (tokens/s)"
    assert found["gguf_threads"].title == "gguf threads"
    assert exported(METRICS) == {}


def test_an_engine_is_as_fast_as_it_answers_or_else_reads() -> None:
    assert speeds([*METRICS, *ONNX, *GGUF]) == ["gguf_tokens_per_s", "onnx_forward_ms"]
    assert speeds(["onnx_logit_gap", "onnx_disk_mb"]) == []  # not timed


def test_more_is_better_of_tokens_alone() -> None:
    assert {name for name, way in DIRECTIONS.items() if way == "max"} == {name for name in TITLES if "tokens" in name}


def test_what_an_export_gives_says_so() -> None:
    assert way_to("compressed_tensors_forward_ms").endswith("slimexp.export ARTIFACT format=compressed_tensors")
    assert way_to("onnx_logit_gap_as_run").endswith("format=onnx")
    assert way_to("disk_mb") == way_to("f1") == ""
