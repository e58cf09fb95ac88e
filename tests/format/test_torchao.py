"""transformers loads the folder with torchao's tensors, which hold the integers that were packed."""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimexp import artifact
from slimexp.export import export
from slimexp.format.base import Artifact
from slimexp.format.report import Report
from slimexp.format.torchao import Torchao
from slimexp.format.verification import Differs
from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token
from slimexp.serialization.unpack import unpacked
from slimexp.weight.attachment import INPUT, attach

pytestmark = pytest.mark.filterwarnings("ignore:.*register_constant.*")
Make = Callable[..., Any]
INT8 = partial(MinMax, bits=8, group_size=None)
INT4 = partial(MinMax, bits=4, group_size=16)
needs_engine = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def engine() -> None:
    pytest.importorskip("torchao")


@pytest.fixture
def made(tiny: Make, tmp_path: Path) -> Make:
    """Task, quantizers of weights, one after another, and of inputs (and config values) -> an artifact."""

    def make(task: str, *weights: Make, inputs: Make | None = None, **values: Any) -> Artifact:
        family = tiny(task, **values)
        for layer, weight in zip(family.compressible().values(), cycle(weights or [INT4]), strict=False):
            attach(layer, "weight", weight())
            if inputs:
                attach(layer, INPUT, inputs())
        artifact.save(family, tmp_path / "artifact", dtype=torch.bfloat16, stages=[])
        return Artifact(tmp_path / "artifact")

    return make


def exported(model: Artifact) -> tuple[Path, Report]:
    folder = model.folder.parent / "export"
    return folder, export(model, Torchao(), "torchao", folder, timed=False)


@needs_engine
@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
@pytest.mark.parametrize(
    "weights",
    [(INT4,), (INT8,), (partial(MinMax, bits=4, group_size=16, symmetric=False),)],
    ids=["int4", "int8", "affine"],
)
def test_every_task_and_grid_agrees(task: str, weights: tuple[Make, ...], made: Make) -> None:
    assert exported(made(task, *weights))[1].agreement.relative < 1e-5


@needs_engine
def test_a_user_loads_the_integers_of_layers_of_unlike_widths(made: Make) -> None:
    model = made("causal_lm", INT4, partial(MinMax, bits=3, group_size=16), INT8, tie_word_embeddings=False)
    folder, report = exported(model)
    assert report.facts["layers"].keys() == {"int3", "int4", "int8"}
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for name, packed in unpacked(model.folder).items():
        weight = loaded.get_submodule(name).weight
        assert type(weight).__name__ == "IntxUnpackedToInt8Tensor"
        assert torch.equal(weight.qdata, packed.numbers) and torch.equal(weight.scale, packed.scale)
        assert weight.target_dtype == getattr(torch, f"int{packed.bits}")
    assert type(loaded.lm_head.weight) is torch.nn.Parameter
    ids = AutoTokenizer.from_pretrained(folder)("standard", return_tensors="pt").input_ids
    assert torch.equal(loaded(ids).logits, model.family.model(ids).logits)
    assert loaded.generate(ids, max_new_tokens=3).shape[1] == ids.shape[1] + 3


@needs_engine
def test_a_wrong_scale_is_no_export(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from slimexp.format import torchao

    tensor = torchao._tensor
    monkeypatch.setattr(torchao, "_tensor", lambda packed: tensor(packed._replace(scale=packed.scale * 1.01)))
    with pytest.raises(Differs, match="computes something else than PyTorch"):
        exported(made("causal_lm"))


@needs_engine
def test_embeddings_of_integers_are_refused(tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm")
    attach(family.model.get_input_embeddings(), "weight", INT8())
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    with pytest.raises(ValueError, match=r"in linear layers, 'model.embed_tokens' is one of embeddings: take"):
        exported(Artifact(tmp_path / "artifact"))


@pytest.mark.parametrize(
    ("weight", "inputs", "why"),
    [
        (INT8, partial(Token, bits=8, group_size=None), "in steps of its own"),
        (partial(Fp8, bits=8, group_size=None, symmetric=True), None, "float8"),
    ],
)
def test_what_it_cannot_hold(weight: Make, inputs: Make | None, why: str, made: Make) -> None:
    reason = Torchao().refusal(made("causal_lm", weight, inputs=inputs))
    assert reason is not None and why in reason


def test_floats(tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny("causal_lm"), tmp_path / "artifact", dtype=torch.float32, stages=[])
    assert "none of its weights is quantized" in str(Torchao().refusal(Artifact(tmp_path / "artifact")))
