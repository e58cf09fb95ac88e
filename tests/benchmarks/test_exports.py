"""The table of exports: cells are exports, every format of conf is there, and what has no figures has a reason."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from benchmarks import exports
from slimexp.config.composition import options


@pytest.fixture(autouse=True)
def _as_talkative_as_before() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(level)
    transformers.logging.enable_progress_bar()


def test_a_toy_has_a_row_of_every_artifact_and_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "table.md"
    command = ["benchmark", "--toy", "--model", "bert", "--only", "hf", "compressed_tensors", "--out", str(out)]
    monkeypatch.setattr(exports, "KINDS", {kind: exports.KINDS[kind] for kind in ("dense", "int8")})
    monkeypatch.setattr(sys, "argv", command)
    assert exports.main() == 0
    lines = out.read_text().splitlines()
    assert [line.split(" | ")[1:4] for line in lines[2:6]] == [
        ["dense", "hf", "0.2"],
        ["dense", "compressed_tensors", "no (1)"],
        ["int8", "hf", "no (2)"],
        ["int8", "compressed_tensors", "0.2"],
    ]
    assert "2 of 4 exports are done" in out.read_text() and "1. none of its weights is quantized" in lines
    assert "bert, int8, compressed_tensors: 0.16 MB, logits differ by at most 0" in capsys.readouterr().out


@pytest.mark.fast
def test_nothing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports.Bench, "artifact", lambda *_: tmp_path)
    monkeypatch.setattr(exports.Bench, "cell", lambda *_: exports.Cell(None, "no"))
    rows = exports.Bench(tmp_path, toy=False).rows(list(exports.ZOO), options("format"))
    assert len(rows) == len(exports.ZOO) * len(exports.KINDS) * len(options("format"))
    assert {(name, kind) for name, kind in exports.ELSE} <= {(name, kind) for _, kind, name in rows}


@pytest.mark.fast
def test_an_artifact_that_cannot_be_made_and_an_export_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Path:
        raise ValueError("nothing can go")

    monkeypatch.setattr(exports.Bench, "artifact", refuse)
    rows = exports.Bench(tmp_path, toy=False).rows(["bert"], ["hf"])
    assert {cell.reason for cell in rows.values()} == {"there is no such artifact: nothing can go"}
    monkeypatch.setattr("slimexp.export.export", lambda *_, **__: {}["gone"])
    cell = exports.Bench(tmp_path, toy=False).cell(tmp_path, "dense", "hf")
    assert cell.broken and cell.reason == "KeyError: 'gone'"
