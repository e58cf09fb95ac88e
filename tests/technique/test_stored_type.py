"""One-shot stages on 16-bit weights as they are stored: what they deploy is what float32 gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimexp import artifact
from slimexp.calibration.observe import visiting
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.model.base import Family

Make = Callable[..., Any]

_PRUNE = ["pipeline=prune", "pipeline.prune.steps=0", "pipeline.prune.min_coverage=0.1"]
_INT4 = ["pipeline=quantize", "pipeline.quantize.steps=0", "pipeline.quantize.min_coverage=0.1"]
ONE_SHOT = {
    "magnitude": _PRUNE,
    "random": [*_PRUNE, "importance@pipeline.prune.importance=random"],
    "wanda": [*_PRUNE, "importance@pipeline.prune.importance=wanda", "pipeline.prune.importance.rows=4"],
    "sparsegpt": [*_PRUNE, "importance@pipeline.prune.importance=sparsegpt", "pipeline.prune.importance.rows=4"],
    "int8": _INT4,
    "affine int8": [*_INT4, "pipeline.quantize.symmetric=false", "pipeline.quantize.activation_bits=null"],
    "gptq": [
        *_INT4, "pipeline.quantize.bits=4", "pipeline.quantize.activation_bits=null",
        "+rounding@pipeline.quantize.rounding=gptq", "pipeline.quantize.rounding.rows=4",
    ],
    "removal": [
        "pipeline=prune_structured", "pipeline.prune_structured.steps=0", "pipeline.prune_structured.rows=4",
        "pipeline.prune_structured.multiple=4",
    ],
}  # fmt: skip


def run(overrides: list[str], dense: Path, folder: Path, *, keep_type: bool, device: str = "cpu") -> dict[str, Any]:
    """The stage's technique on the artifact ``dense``; the deployable weights in ``folder``."""
    cfg = compose(overrides)
    (technique,) = (build(node) for node in cfg.pipeline.values())
    technique.compute_device = torch.device(device)
    assert technique.keeps_stored_type
    family = artifact.load(dense, keep_type=keep_type)
    assert family.model.dtype == (torch.bfloat16 if keep_type else torch.float32)
    torch.manual_seed(0)
    technique.prepare(family, build(cfg.data), None)
    technique.finish()
    artifact.save(technique.family, folder, dtype=torch.bfloat16, stages=[])
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", ONE_SHOT)
def test_deploys_what_float32_gives(name: str, tiny: Make, overrides: Make, tmp_path: Path) -> None:
    artifact.save(tiny("causal_lm"), tmp_path / "dense", dtype=torch.bfloat16, stages=[])
    line = [text for text in overrides("prune", task="causal_lm") if not text.startswith("pipeline=")]
    line += ONE_SHOT[name]
    wide = run(line, tmp_path / "dense", tmp_path / "wide", keep_type=False)
    kept = run(line, tmp_path / "dense", tmp_path / "kept", keep_type=True)
    assert kept.keys() == wide.keys()
    for key, tensor in wide.items():
        assert kept[key].dtype == tensor.dtype and torch.equal(kept[key], tensor), key


@pytest.mark.gpu
@pytest.mark.parametrize("name", ONE_SHOT)
def test_computes_on_a_gpu_in_the_type_that_is_stored(name: str, tiny: Make, overrides: Make, tmp_path: Path) -> None:
    artifact.save(tiny("causal_lm"), tmp_path / "dense", dtype=torch.bfloat16, stages=[])
    line = [text for text in overrides("prune", task="causal_lm") if not text.startswith("pipeline=")]
    line += ONE_SHOT[name]
    on_cpu = run(line, tmp_path / "dense", tmp_path / "cpu", keep_type=True)
    on_gpu = run(line, tmp_path / "dense", tmp_path / "gpu", keep_type=True, device="cuda")
    like = {key: (tensor.shape, tensor.dtype) for key, tensor in on_cpu.items()}
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in on_gpu.items()} == like
    if name not in ("random", "removal"):  # which may choose otherwise
        floats = [key for key, tensor in on_cpu.items() if tensor.is_floating_point()]
        one, other = (torch.cat([weights[key].flatten().float() for key in floats]) for weights in (on_gpu, on_cpu))
        assert (one - other).norm() < 0.1 * other.norm()


def stored(family: Family) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in family.model.named_parameters()}


def test_a_visit_gives_weights_back_as_they_were(tiny: Make, tmp_path: Path) -> None:
    """In float32 meanwhile; those that did not change are the tensors of before, those that did have the old type."""
    artifact.save(tiny("causal_lm"), tmp_path / "dense", dtype=torch.bfloat16, stages=[])
    family = artifact.load(tmp_path / "dense", keep_type=True)
    before = stored(family)
    layer = next(iter(family.compressible().values()))
    with visiting(family.model, torch.device("cpu")):
        assert {parameter.dtype for parameter in family.model.parameters()} == {torch.float32}
        with torch.no_grad():
            layer.weight.mul_(2)  # type: ignore[operator]
    assert {parameter.dtype for parameter in family.model.parameters()} == {torch.bfloat16}
    changed = [name for name, place in stored(family).items() if place != before[name]]
    assert [family.model.get_parameter(name) for name in changed] == [layer.weight]


def test_a_stage_goes_on_from_masks_in_the_type_they_were_found_in(tiny: Make, overrides: Make, tmp_path: Path) -> None:
    artifact.save(tiny("causal_lm"), tmp_path / "dense", dtype=torch.bfloat16, stages=[])
    line = [text for text in overrides("prune", task="causal_lm") if not text.startswith("pipeline=")]
    run([*line, *_PRUNE], tmp_path / "dense", tmp_path / "masked", keep_type=True)
    kept, wide = (artifact.load(tmp_path / "masked", keep_type=keep).model for keep in (True, False))
    assert kept.dtype == torch.bfloat16 and wide.dtype == torch.float32
    assert all(
        torch.equal(wide.state_dict()[n], t.to(wide.state_dict()[n].dtype)) for n, t in kept.state_dict().items()
    )
