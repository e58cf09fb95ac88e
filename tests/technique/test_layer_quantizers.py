"""Group sizes of layers by their names: rounded, trained, packed, and loaded again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from slimexp import artifact
from slimexp.quantizer.minmax import MinMax
from slimexp.serialization.unpack import unpacked
from slimexp.technique.layer_quantizers import LayerQuantizers
from tests.cut.test_expert_use import MIXTURES

Make = Callable[..., Any]
GIVEN = "{*.mlp.*:8,model.layers.0.*:null,*:16}"
SIZES = {
    "model.layers.0.mlp.up_proj": 8,
    "model.layers.0.self_attn.q_proj": None,
    "model.layers.1.self_attn.q_proj": 16,
}


def test_the_first_pattern_that_matches_counts_and_rows_must_divide() -> None:
    some = LayerQuantizers(MinMax, {"a.*": 4, "*": 5})
    assert (some.sizes, some.multiple) == ([4, 5], 20)
    assert some.of("a.b", nn.Linear(8, 4), bits=4).granularity.group_size == 4
    with pytest.raises(ValueError, match=r"layer 'b': group_size must divide the length of a row, got 5"):
        some.of("b", nn.Linear(8, 4), bits=4)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, r"group_size must name layers"),
        ({"*": 0}, r"group_size of '\*' must be >= 1, or null for one scale per row, got 0"),
        ({"*": "tensor"}, r"group_size of '\*' must be >= 1, or null"),
        ({"a": 8}, r"group_size has no pattern for layer 'b': add one, or '\*' for all others"),
        ({"*": 8, "a": 4}, r"group_size: no layer is left for 'a' by those before it: put it first"),
        ({"*": 8, "c": 4}, r"group_size: no layer matches 'c': remove it; layers are a, b"),
    ],
)
def test_what_fits_no_layers_is_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerQuantizers(MinMax, sizes).check_names(["a", "b"])


@pytest.mark.parametrize("more", [[], ["+rounding@pipeline.quantize.rounding=gptq"]], ids=["nearest", "gptq"])
@pytest.mark.parametrize("activation_bits", [None, 8])
def test_an_artifact_of_several_group_sizes_is_loaded_by_plain_transformers(
    tiny: Make, corpus: Make, technique: Make, tmp_path: Path, more: list[str], activation_bits: int | None
) -> None:
    stage = technique("quantize", *more, bits=4, group_size=GIVEN, activation_bits=activation_bits)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    stage.finish()
    assert {name: stage.on_weights[name].granularity.group_size for name in SIZES} == SIZES
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    groups = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert sorted(str(group["weights"]["group_size"]) for group in groups.values()) == ["16", "8", "None"]
    packed = unpacked(tmp_path / "a")
    assert {name: packed[name].group_size for name in SIZES} == {**SIZES, "model.layers.0.self_attn.q_proj": 32}
    again = artifact.load(tmp_path / "a").model
    assert all(torch.equal(again.get_submodule(name).weight, stage.layers[name].weight) for name in SIZES)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        expected, found = stage.model(input_ids=ids).logits, loaded(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_bits_may_be_allocated_to_layers_of_unlike_groups(tiny: Make, corpus: Make, technique: Make) -> None:
    mixed = ["+allocation@pipeline.quantize.allocation=mixed_precision", "pipeline.quantize.allocation.rows=2"]
    stage = technique("quantize", *mixed, bits=4, group_size=GIVEN, activation_bits=None)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    assert {name: stage.on_weights[name].granularity.group_size for name in SIZES} == SIZES
    assert len({quantizer.bits for quantizer in stage.on_weights.values()}) > 1


def test_what_transformers_could_not_load_is_refused(tiny: Make, corpus: Make, technique: Make) -> None:
    with pytest.raises(ValueError, match=r"an encoder-decoder with one group size for all layers: .*, got 8, 16"):
        stage = technique("quantize", bits=4, group_size="{*.0.*:8,*:16}", activation_bits=None)
        stage.validate(tiny("seq2seq").model.config, before=[])
    with pytest.raises(ValueError, match=r"one width and one group size: set .* group_size to a number"):
        technique("quantize", bits=4, group_size="{*.0.*:8,*:16}", activation_bits=None, embeddings="true")


def test_experts_have_one_group_size(tiny: Make, corpus: Make, technique: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm", model_type="qwen3_moe", **MIXTURES["qwen3_moe"], initializer_range=0.3)
    unlike = technique("quantize", bits=4, group_size="{*.0.*:8,*:4}", activation_bits=None)
    with pytest.raises(ValueError, match=r"one group size, .* has \[4, 8\] for them: give them one pattern"):
        unlike.prepare(family, corpus("causal_lm"), None)
    stage = technique("quantize", bits=4, group_size="{*.experts.*:8,*:4}", activation_bits=None)
    stage.prepare(family, corpus("causal_lm"), None)
    stage.finish()
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    batch = stage.family.encode([("one and two", None, None)])
    with torch.no_grad():
        expected = stage.family.forward(batch)[0]
        assert torch.equal(artifact.deployed(tmp_path / "a").forward(batch)[0], expected)
