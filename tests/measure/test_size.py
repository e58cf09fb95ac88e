"""Bytes and parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slimexp import artifact
from slimexp.data.base import Corpus
from slimexp.measure.base import Subject
from slimexp.measure.resident import resident_bytes
from slimexp.measure.size import Size, count, deployable


def test_figures_of_a_plain_model(subjects: dict[str, Subject], corpora: dict[str, Corpus]) -> None:
    subject = subjects["causal_lm"]
    figures = Size().measure(subject, subject, corpora["causal_lm"])
    expected = sum(p.numel() for p in subject.family.model.parameters())  # tied: torch lists them once
    assert figures["params_live"] == expected
    # transformers writes the padding row of an embedding as it is trained: random here, or zero
    assert expected - 64 <= figures["params_nonzero"] <= expected
    assert figures["resident_mb"] == pytest.approx(4 * expected / 1e6, rel=0.01)  # and the rotary frequencies
    assert figures["weights_mb"] == (subject.folder / "model.safetensors").stat().st_size / 1e6
    assert figures["weights_mb"] < figures["disk_mb"] < figures["weights_mb"] + 0.1


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_one_model_has_one_size_in_a_folder_of_others_and_as_an_artifact(
    task: str, subjects: dict[str, Subject], corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    subject = subjects[task]
    assert "\n" in (subject.folder / "tokenizer.json").read_text()  # indented, as transformers writes it
    artifact.save(subject.family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    saved = Subject(artifact.deployed(tmp_path / "artifact"), tmp_path / "artifact")
    own, anew = (Size().measure(one, one, corpora[task]) for one in (subject, saved))
    assert own["disk_mb"] == anew["disk_mb"] and own["weights_mb"] == anew["weights_mb"]
    assert anew["disk_mb"] == sum(file.stat().st_size for file in deployable(saved.folder)) / 1e6


def test_tied_weights_once_and_zeros_not_among_the_nonzero() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.fill_(1.0)[:2] = 0
    assert count(model) == (16, 8)
    assert resident_bytes(model) == 64


def _touch(folder: Path, **sizes: int) -> None:
    for name, size in sizes.items():
        (folder / name.replace("__", ".").replace("_", "-")).write_bytes(b"x" * size)


@pytest.mark.fast
def test_manifest_says_what_ships(tmp_path: Path) -> None:
    _touch(tmp_path, model__safetensors=10, config__json=5, training__safetensors=100)
    manifest: dict[str, Any] = {"format": 1, "family": "seq2seq", "max_length": 8, "stages": [], "attachments": []}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"files": ["model.safetensors", "config.json"]}))
    assert {file.name for file in deployable(tmp_path)} == {"model.safetensors", "config.json"}
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"lacks config\.json"):
        deployable(tmp_path)


@pytest.mark.fast
def test_without_manifest_only_what_transformers_loads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        deployable(tmp_path)
    _touch(tmp_path, config__json=5, tokenizer__json=7, merges__txt=3, README__md=50, training__safetensors=100)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 40)
    assert sum(file.stat().st_size for file in deployable(tmp_path)) == 55
    _touch(tmp_path, model__safetensors=20)  # goes before the .bin beside it
    assert sum(file.stat().st_size for file in deployable(tmp_path)) == 35
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_bytes(b"x" * 2)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x" * 11)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x" * 11)
    assert sum(file.stat().st_size for file in deployable(tmp_path)) == 39


@pytest.mark.parametrize(("bits", "form"), [(4, "pack-quantized"), (3, "pack-quantized"), (8, "int-quantized")])
def test_packed_weights_count_what_they_stand_for(bits: int, form: str) -> None:
    from compressed_tensors.compressors import compress_module, decompress_module
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStatus
    from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization

    torch.manual_seed(0)
    layer = nn.Linear(40, 6)
    with torch.no_grad():
        layer.weight[:, :10] = 0
        layer.weight[:, 10:] += layer.weight[:, 10:].sign()  # nothing else rounds to zero
    weights = QuantizationArgs(num_bits=bits, symmetric=True, strategy="channel")
    inputs = QuantizationArgs(num_bits=8, dynamic=True, strategy="token") if form == "int-quantized" else None
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs, format=form)
    initialize_module_for_quantization(layer, scheme)
    layer.weight_scale.data = layer.weight.detach().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    layer.quantization_status = QuantizationStatus.FROZEN
    plain = count(layer)
    compress_module(layer)
    packed = "weight_packed" if form == "pack-quantized" else "weight"
    assert not dict(layer.named_parameters())[packed].is_floating_point()
    before = {name: tensor.dtype for name, tensor in layer.named_parameters()}
    assert count(layer) == plain == (246, 186)
    assert {name: tensor.dtype for name, tensor in layer.named_parameters()} == before  # counting unpacks a copy
    decompress_module(layer)
    assert count(layer) == plain


def test_asymmetric_integers_are_zero_at_their_zero_point() -> None:
    layer = nn.Module()
    layer.register_buffer("weight", torch.tensor([[3, 3, 5, 0], [-1, 0, -1, 2]], dtype=torch.int8))
    layer.register_buffer("weight_zero_point", torch.tensor([[3, 0], [-1, -1]], dtype=torch.int8))  # groups of two
    assert count(layer) == (8, 3)
