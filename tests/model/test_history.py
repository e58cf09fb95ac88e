"""A source knows what was done to its model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.cut.keep import Keep
from slimexp.cut.source import CutOut
from slimexp.model.base import Family, Source
from slimexp.model.history import History
from slimexp.model.loading import Pretrained, Scratch
from slimexp.model.tokenizer import Bytes
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask

Make = Callable[..., Any]
CUT = Keep(
    encoder_layers=None, decoder_layers=None, ffn=16, heads=None, attention_rank=None, ffn_rank=None, hidden=None,
    experts=None, calibration_batches=0,
)  # fmt: skip
PRUNED = {"name": "half", "technique": "Prune", "coverage": {}}
TRAINED = {"name": "more", "technique": "Finetune", "coverage": {}}


def saved(family: Family, folder: Path, *stages: dict[str, Any]) -> Pretrained:
    artifact.save(family, folder, dtype=torch.float32, stages=stages)
    return Pretrained(path=str(folder), max_length=8)


def scratch() -> Scratch:
    return Scratch(config={"model_type": "t5", "num_layers": 1}, tokenizer=Bytes(), max_length=16)


def test_nothing_is_known_of_a_model_of_others(tiny_folder: Make) -> None:
    source = Pretrained(path=str(tiny_folder("seq2seq")), max_length=16)
    assert source.history() == scratch().history() == History()
    assert source.history().compressed_by == [] and not source.history().quantized
    assert (source.origin, source.is_random, scratch().is_random) == (source, False, True)


def test_a_model_of_others_may_be_quantized(tiny_folder: Make, tiny: Make) -> None:
    folder = tiny_folder("seq2seq")
    config = tiny("seq2seq").model.config
    config.quantization_config = {"quant_method": "compressed-tensors"}
    config.save_pretrained(folder)
    source = Pretrained(path=str(folder), max_length=16)
    assert source.history() == History(format="compressed-tensors")
    assert source.history().compressed_by == ["compressed-tensors"] and source.history().quantized


def test_an_artifact_tells_its_stages_and_what_sits_on_its_weights(tiny: Make, tmp_path: Path) -> None:
    family = tiny("seq2seq")
    layer = next(iter(family.compressible().values()))
    attach(layer, "weight", Mask(shape=list(layer.weight.shape)))
    history = saved(family, tmp_path / "pruned", PRUNED, TRAINED).history()
    assert (history.artifact, history.max_length) == (tmp_path / "pruned", family.max_length)
    assert [stage["name"] for stage in history.stages] == ["half", "more"]
    assert [row["class"] for row in history.attachments] == ["slimexp.weight.mask.Mask"]
    assert history.compressed_by == ["half"] and not history.quantized and history.format is None


def test_a_quantized_artifact_is_quantized_by_its_config_or_by_its_manifest(tiny: Make, tmp_path: Path) -> None:
    family = tiny("seq2seq")
    for layer in family.compressible().values():
        attach(layer, "weight", MinMax(bits=8, group_size=None))
    source = saved(family, tmp_path, {"name": "round", "technique": "Quantize", "coverage": {}})
    assert source.history().quantized and source.history().compressed_by == ["round"]
    (tmp_path / artifact.MANIFEST).unlink()
    assert Pretrained(path=str(tmp_path), max_length=8).history() == History(format="compressed-tensors")
    rounded = {"class": "slimexp.quantizer.minmax.MinMax"}
    assert History(attachments=[rounded]).quantized and not History(attachments=[{"class": "slimexp.a.B"}]).quantized


@pytest.mark.parametrize("inner", ["artifact", "scratch"])
def test_a_model_that_is_cut_out_has_the_files_and_format_of_its_source(inner: str, tiny: Make, tmp_path: Path) -> None:
    source: Source = scratch() if inner == "scratch" else saved(tiny("seq2seq"), tmp_path, PRUNED)
    cut = CutOut(source=source, cut=CUT)
    assert cut.history() == History(cut=True, format=source.stored_as())
    assert cut.history().compressed_by == ["cut"]
    assert (cut.origin, cut.is_random) == (source, inner == "scratch")


def test_a_damaged_artifact_is_refused_itself_and_as_what_is_cut_out(tiny: Make, tmp_path: Path) -> None:
    source = saved(tiny("seq2seq"), tmp_path)
    cut = CutOut(source=source, cut=CUT)
    source.check_files()
    cut.check_files()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    for one in (source, cut):
        with pytest.raises(ValueError, match=rf"^model '{tmp_path}' is damaged \(config\.json .*\): copy or train"):
            one.check_files()
    (tmp_path / artifact.MANIFEST).unlink()  # as another tool would have left it
    source.check_files()
