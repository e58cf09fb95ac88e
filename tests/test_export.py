"""An export is whole, was compared with PyTorch, or is not there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimexp import artifact
from slimexp.export import REPORT, main, settings
from slimexp.format.base import Artifact, Plain
from slimexp.format.verification import NEW_TOKENS, compare
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach

Make = Callable[..., Any]


@pytest.fixture(params=["seq2seq", "causal_lm", "classification"])
def dense(request: pytest.FixtureRequest, tiny: Make, tmp_path: Path) -> Path:
    artifact.save(tiny(request.param), tmp_path / "artifact", dtype=torch.float32, stages=[])
    return tmp_path / "artifact"


@pytest.fixture
def rounded(tiny: Make, tmp_path: Path) -> Path:
    family = tiny("causal_lm")
    for layer in family.compressible().values():
        attach(layer, "weight", MinMax(bits=8, group_size=None))
        layer.parametrizations.weight[0].freeze(layer.parametrizations.weight.original.detach())
    artifact.save(family, tmp_path / "rounded", dtype=torch.float32, stages=[])
    return tmp_path / "rounded"


def test_plain_files_are_what_a_user_deploys(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dense), "format=hf"]) == 0
    folder = dense.parent / "hf"
    names = {path.name for path in folder.iterdir()}
    assert names == set(Artifact(dense).content["files"]) | {REPORT}
    report = json.loads((folder / REPORT).read_text())
    agreement = report["agreement"]
    assert agreement["gap"] == 0 and agreement["same_tokens"] == agreement["tokens"]
    assert agreement["tokens"] == (0 if Artifact(dense).task == "classification" else NEW_TOKENS)
    assert any(line.startswith(f"{folder}: ") for line in capsys.readouterr().out.splitlines())


def test_an_export_whose_record_cannot_be_written_is_done(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("slimexp.format.report.add_to_record", full)
    assert main([str(dense), "format=hf"]) == 0
    assert "not recorded: the disk is full" in capsys.readouterr().err
    assert (dense.parent / "hf" / REPORT).exists()


def test_integers_stay_integers(rounded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(rounded), "format=hf"]) == 2
    assert (
        "packed integers, which would become floats; these hold it: format=compressed_tensors, "
        in capsys.readouterr().err
    )
    assert not (rounded.parent / "hf").exists()
    assert main([str(rounded), "format=compressed_tensors", f"out={rounded.parent / 'packed'}"]) == 0
    config = json.loads((rounded.parent / "packed" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_an_engine_that_computes_something_else_leaves_nothing(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(dense), "format=hf"]) == 0
    before = (dense.parent / "hf" / REPORT).read_text()

    class Off(Plain):
        def logits(self, *row: Any) -> Any:
            return super().logits(*row) + np.float32(0.5)

    monkeypatch.setattr("slimexp.format.hf.Plain", Off)
    assert main([str(dense), "format=hf"]) == 2
    assert "something else than PyTorch: logits differ by at most 0.5, " in capsys.readouterr().err
    assert (dense.parent / "hf" / REPORT).read_text() == before, "the earlier export"
    assert sorted(path.name for path in dense.parent.iterdir()) == ["artifact", "hf"]


def test_tokens_are_compared_up_to_the_first_that_differs(tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny("causal_lm"), tmp_path / "artifact", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "artifact")

    class Stuck(Plain):
        def greedy(self, *row: Any) -> list[int]:
            return [*super().greedy(*row)[:3], *[0] * (NEW_TOKENS - 3)]

    assert compare(model, Stuck(model.family.model)).same_tokens < NEW_TOKENS
    assert compare(model, Plain(model.family.model)).same_tokens == NEW_TOKENS


def test_nan_is_no_agreement(tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny("classification"), tmp_path / "artifact", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "artifact")

    class Broken(Plain):
        def logits(self, *row: Any) -> Any:
            return super().logits(*row) * np.float32("nan")

    assert np.isnan(compare(model, Broken(model.family.model)).relative)


def test_a_link_to_a_folder_is_replaced_and_not_written_through(dense: Path) -> None:
    (dense.parent / "elsewhere").mkdir()
    (dense.parent / "hf").symlink_to(dense.parent / "elsewhere")
    assert main([str(dense), "format=hf"]) == 0
    assert not (dense.parent / "hf").is_symlink() and (dense.parent / "hf" / REPORT).exists()
    assert list((dense.parent / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give a format: format=compressed_tensors|"),
        (["format=hff"], "there is no format 'hff', did you mean 'hf'? there are compressed_tensors, "),
        (["hf"], "'hf' is no setting: write format=NAME"),
        (["format=hf", "folder=x"], "'folder=x' is no setting"),
        (["format=hf", "format.a..b=1"], "'format.a..b=1' is no setting"),
        (["format=hf", "format.a={"], "cannot read a={"),
        (["format=hf", "out="], "'out=' is no setting"),
        (["format=hf", "format.opset=18"], "format.opset"),
        (["format=ctranslate2", "format.tolerance=abc"], "format.tolerance"),
    ],
)
def test_a_wrong_setting_is_one_line(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), *given]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: ") and message in line


def test_what_is_no_whole_artifact_is_refused(
    rounded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, why in (
        (tmp_path / "nothing", "there is no such folder"),
        (rounded / "config.json", "it is a file; an artifact is the folder that a stage leaves"),
        (rounded.parent, f"it holds no manifest.json; artifacts below it: 1, the newest {rounded}"),
    ):
        assert main([str(path), "format=hf"]) == 2
        assert f"'{path}' is no slimexp artifact: {why}" in capsys.readouterr().err
    weights = rounded / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main([str(rounded), "format=compressed_tensors"]) == 2
    error = capsys.readouterr().err
    assert f"'{rounded}' is damaged (model.safetensors has " in error and "copy or train the model anew" in error


def test_a_folder_of_something_else_is_not_touched(rounded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = rounded.parent / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert main([str(rounded), "format=compressed_tensors", f"out={other}"]) == 2
    assert "exists and is no export" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_what_a_crashed_engine_left_is_removed_by_the_next_export(rounded: Path) -> None:
    crashed, running = (rounded.parent / f".{pid}.compressed_tensors" for pid in (999_999_999, os.getppid()))
    crashed.mkdir()
    running.mkdir()
    assert main([str(rounded), "format=compressed_tensors"]) == 0
    assert not crashed.exists() and running.exists()


def test_what_cannot_be_written_to_is_one_line(rounded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, why in (("/proc/x", "cannot write to '/proc/x' ("), (rounded / "config.json", "is no folder: ")):
        assert main([str(rounded), "format=compressed_tensors", f"out={place}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert why in line and line.endswith("give another folder by out=FOLDER") and "partial" not in line


def test_the_formats_that_hold_a_model_are_those_that_do_not_refuse_it(
    tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact.save(tiny("seq2seq"), tmp_path / "artifact", dtype=torch.float32, stages=[])
    assert main([str(tmp_path / "artifact"), "format=gguf"]) == 2
    holding = "format=ctranslate2, format=executorch, format=hf, format=onnx, format=openvino"
    assert f"of the task seq2seq; these hold it: {holding}\n" in capsys.readouterr().err


def test_what_shows_only_in_the_weights_names_them_too(
    rounded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no place for it")

    monkeypatch.setattr("slimexp.format.hf.CompressedTensors.write", refuse)
    assert main([str(rounded), "format=compressed_tensors"]) == 2
    assert (
        "cannot be exported as compressed_tensors: no place for it; these hold it: format=" in capsys.readouterr().err
    )


def test_a_converter_that_fails_is_one_line(
    rounded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no operator\nfor this")

    monkeypatch.setattr("slimexp.format.hf.CompressedTensors.write", fail)
    assert main([str(rounded), "format=compressed_tensors"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "what writes or runs compressed_tensors fails on this model (RuntimeError: no operator for this)" in line
    assert sorted(path.name for path in rounded.parent.iterdir()) == ["rounded"]


def test_a_folder_that_transformers_exported_is_not_replaced(rounded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = rounded.parent / "other"
    other.mkdir()
    (other / "export.json").write_text("{}")
    assert main([str(rounded), "format=compressed_tensors", f"out={other}"]) == 2
    assert "exists and is no export" in capsys.readouterr().err and (other / "export.json").exists()


def test_options_of_a_format_are_read_as_yaml() -> None:
    name, out, values = settings(["format=hf", "format.opset=21", "format.dynamic=false", "out=a=b"])
    assert (name, out, values) == ("hf", Path("a=b"), {"opset": 21, "dynamic": False})
