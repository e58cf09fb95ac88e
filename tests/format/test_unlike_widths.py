"""Models whose blocks have unlike widths: what traces them computes them, what is sized by a config refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.config.build import build
from slimexp.config.composition import options
from slimexp.export import _chosen, export, main
from slimexp.format.base import Artifact

Make = Callable[..., Any]
LLAMA = {"decoder": [16, 48]}
GROUPS = {"decoder": [1, 2]}
NO_ATTENTION, NO_NEURONS = {"decoder": [0, 2]}, {"decoder": [48, 0]}
SIZED_BY_CONFIG = {"hf", "compressed_tensors", "gguf", "torchao"}


def saved(
    tiny_unlike: Make, folder: Path, task: str = "causal_lm", heads: Any = None, **neurons: list[int]
) -> Artifact:
    unlike = neurons if heads else neurons or LLAMA
    artifact.save(tiny_unlike(task, heads, **unlike), folder, dtype=torch.float32, stages=[])
    return Artifact(folder)


@pytest.mark.parametrize(("heads", "more"), [(None, set()), (GROUPS, {"ctranslate2"})])
def test_formats_of_engines_that_are_sized_by_a_config_refuse(
    tiny_unlike: Make, heads: Any, more: set[str], tmp_path: Path
) -> None:
    model = saved(tiny_unlike, tmp_path / "artifact", heads=heads)
    reasons = {name: build(_chosen(name, {})).why_not(model) for name in options("format")}
    assert {name for name, why in reasons.items() if why and "unlike widths" in why} == SIZED_BY_CONFIG | more


def test_a_refusal_names_the_formats_that_hold_it(
    tiny_unlike: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tiny_unlike, tmp_path / "artifact")
    assert main([str(tmp_path / "artifact"), "format=gguf"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "its blocks have unlike widths" in line and line.endswith("format=onnx, format=openvino")
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize(
    ("task", "neurons"),
    [("causal_lm", LLAMA), ("seq2seq", {"encoder": [48, 16], "decoder": [8, 32]}),
     ("classification", {"encoder": [16, 48]})],
)  # fmt: skip
def test_ctranslate2_takes_the_sizes_of_layers_from_their_weights(
    tiny_unlike: Make, tmp_path: Path, task: str, neurons: dict[str, list[int]]
) -> None:
    pytest.importorskip("ctranslate2")
    model = saved(tiny_unlike, tmp_path / "artifact", task, **neurons)
    kind = build(_chosen("ctranslate2", {"compute_type": "float32"}))
    export(model, kind, "ctranslate2", tmp_path / "export", timed=False)  # raises where the engine computes otherwise


def test_ctranslate2_refuses_blocks_without_layers(tiny_unlike: Make, tmp_path: Path) -> None:
    model = saved(tiny_unlike, tmp_path / "artifact", decoder=NO_NEURONS["decoder"])
    why = build(_chosen("ctranslate2", {})).why_not(model)
    assert why is not None and "blocks without attention or feed-forward layers" in why
    assert build(_chosen("onnx", {})).why_not(model) is None


MAPS = {"heads": NO_ATTENTION, "attention_rank": {"decoder": [8, 0]},
        "ffn": NO_NEURONS, "ffn_rank": {"decoder": [0, 16]}}  # fmt: skip


def mapped(tiny: Make, folder: Path) -> Artifact:
    artifact.save(tiny("causal_lm", slimexp_widths=MAPS), folder, dtype=torch.float32, stages=[])
    return Artifact(folder)


def test_engines_that_build_blocks_themselves_refuse_maps(tiny: Make, tmp_path: Path) -> None:
    model = mapped(tiny, tmp_path / "artifact")
    reasons = {name: build(_chosen(name, {})).why_not(model) for name in options("format")}
    refused = {name for name, why in reasons.items() if why and "its blocks have unlike widths" in why}
    assert refused == SIZED_BY_CONFIG | {"ctranslate2"} and reasons["onnx"] is reasons["openvino"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_graph_has_maps_in_the_place_of_layers(tiny: Make, tmp_path: Path, name: str) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    model = mapped(tiny, tmp_path / "artifact")
    export(model, build(_chosen(name, {})), name, tmp_path / "export", timed=False)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [None, GROUPS, NO_ATTENTION])
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_graph_has_the_layers_as_they_are(tiny_unlike: Make, tmp_path: Path, name: str, heads: Any) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    model = saved(tiny_unlike, tmp_path / "artifact", heads=heads)
    export(model, build(_chosen(name, {})), name, tmp_path / "export", timed=False)
