"""Blocks of unlike widths: a model is built, saved, loaded, resumed and generates as wide as its config says."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from slimexp import artifact
from slimexp.architecture.base import FFN, HEADS, KV_HEADS
from slimexp.cut.proof import logits
from slimexp.cut.remove import head_rows, remove
from slimexp.model.base import parameter_count
from slimexp.model.loading import Pretrained, Scratch
from slimexp.model.tokenizer import Bytes
from slimexp.model.widths import KEY, can_drop, class_of, set_widths, units_of, widths_of
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach
from tests.conftest import TINY

Tiny = Callable[..., Any]
LLAMA = {"decoder": [16, 48]}
NEURONS = {"seq2seq": {"encoder": [48, 16], "decoder": [8, 32]}, "causal_lm": LLAMA,
           "classification": {"encoder": [48, 8]}}  # fmt: skip
GROUPS = {"decoder": [1, 2]}  # a key/value head each, with two query heads
NO_ATTENTION, NO_NEURONS = {"decoder": [0, 2]}, {"decoder": [48, 0]}
MAPS = {HEADS: NO_ATTENTION, "attention_rank": {"decoder": [8, 0]}, FFN: NO_NEURONS, "ffn_rank": {"decoder": [0, 16]}}


@pytest.mark.parametrize(
    ("task", "heads"), [*((task, None) for task in NEURONS), ("causal_lm", GROUPS), ("causal_lm", NO_ATTENTION)]
)
def test_an_artifact_is_loaded_as_it_was_saved(
    tiny: Tiny, tiny_unlike: Tiny, task: str, heads: dict[str, list[int]] | None, tmp_path: Path
) -> None:
    family = tiny_unlike(task, heads, **NEURONS[task])
    assert widths_of(family.model.config) == {FFN: NEURONS[task]} | ({HEADS: heads} if heads else {})
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    again = artifact.load(tmp_path / "artifact")
    for one in (again, artifact.deployed(tmp_path / "artifact"), artifact.served(tmp_path / "artifact")):
        torch.testing.assert_close(logits(one), logits(family))
    artifact.save(again, tmp_path / "second", dtype=torch.float32, stages=[])
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("artifact", "second")]
    assert configs[0] == configs[1]
    assert configs[0]["architectures"] == [type(tiny(task).model).__name__]


@pytest.mark.parametrize("heads", [None, GROUPS, NO_ATTENTION])
def test_quantized_blocks_resume_and_are_served_packed(tiny_unlike: Tiny, heads: Any, tmp_path: Path) -> None:
    family = tiny_unlike("causal_lm", heads, **LLAMA)
    for layer in family.compressible().values():
        attach(layer, "weight", MinMax(bits=8, group_size=8))
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    for one in (artifact.load(tmp_path / "artifact"), artifact.deployed(tmp_path / "artifact")):
        torch.testing.assert_close(logits(one), logits(family))
    served = artifact.served(tmp_path / "artifact")
    torch.testing.assert_close(logits(served), logits(family), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("heads", [None, GROUPS, NO_ATTENTION])
def test_tokens_are_generated_with_a_cache_as_without(tiny_unlike: Tiny, heads: Any) -> None:
    model = tiny_unlike("causal_lm", heads, **LLAMA).model
    ids = torch.arange(3, 9)[None]
    cached, anew = (
        model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(cached, anew)


def test_a_block_without_attention_or_neurons_adds_nothing(tiny: Tiny, tiny_unlike: Tiny) -> None:
    """As one whose projections to the residual stream are zero, and without their weights."""
    whole = tiny("causal_lm")
    first, second = whole.model.model.layers
    with torch.no_grad():
        first.self_attn.o_proj.weight.zero_()
        second.mlp.down_proj.weight.zero_()
    small = tiny_unlike("causal_lm", NO_ATTENTION, **NO_NEURONS)
    torch.testing.assert_close(logits(small), logits(whole))
    gone = [*first.self_attn.parameters(), *second.mlp.parameters()]
    assert parameter_count(small.model) == parameter_count(whole.model) - sum(map(torch.numel, gone))
    assert widths_of(small.model.config) == {FFN: NO_NEURONS, HEADS: NO_ATTENTION}
    none = tiny_unlike("causal_lm", {"decoder": [0, 0]}, decoder=[0, 0]).model
    assert none.generate(torch.arange(3, 9)[None], max_new_tokens=2, min_new_tokens=2).shape == (1, 8)


@pytest.mark.parametrize("bits", [None, 8])
def test_maps_in_the_place_of_layers_are_as_other_layers(tiny: Tiny, bits: int | None, tmp_path: Path) -> None:
    """Built from a config, saved, loaded, packed, resumed, copied, and generating with a cache as without."""
    family = tiny("causal_lm", **{KEY: MAPS})
    blocks = family.blocks()["decoder"]
    names = {name for name in family.compressible() if "rank" in name}
    assert names == {f"model.layers.{n}.{part}_rank" for n in ("0.self_attn", "1.mlp") for part in ("to", "from")}
    assert [blocks[0].self_attn.to_rank.out_features, blocks[1].mlp.from_rank.in_features] == [8, 16]
    for layer in family.compressible().values() if bits else ():
        attach(layer, "weight", MinMax(bits=bits or 0, group_size=8))
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    again = artifact.load(tmp_path / "artifact")
    assert widths_of(again.model.config) == MAPS
    for one in (again, artifact.deployed(tmp_path / "artifact")):
        torch.testing.assert_close(logits(one), logits(family))
    served, near = artifact.served(tmp_path / "artifact"), 0.05 if bits else 1e-4
    torch.testing.assert_close(logits(served), logits(family), atol=near, rtol=near)
    model = copy.deepcopy(tiny("causal_lm", **{KEY: MAPS}).model)
    tokens = (
        model.generate(torch.arange(3, 9)[None], max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(*tokens)


@pytest.mark.parametrize(
    ("axis", "values"), [(HEADS, {"attention_bias": True}), (FFN, {"mlp_bias": True}), (FFN, {"model_type": "phi"})]
)
def test_a_block_whose_bias_would_stay_keeps_some(tiny: Tiny, axis: str, values: Any) -> None:
    assert can_drop(tiny("causal_lm").model.config, axis)
    assert not can_drop(tiny("causal_lm", **values).model.config, axis)


def test_copies_are_of_the_same_class(tiny_unlike: Tiny) -> None:
    model = tiny_unlike("causal_lm", GROUPS, **LLAMA).model
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and widths_of(other.config) == {FFN: LLAMA, HEADS: GROUPS}
        for one, mine in zip(other.parameters(), model.parameters(), strict=True):
            assert torch.equal(one, mine) and one is not mine


@pytest.mark.parametrize("unlike", [LLAMA, {"heads": GROUPS}])
def test_plain_transformers_refuses_what_it_cannot_hold(tiny_unlike: Tiny, unlike: Any, tmp_path: Path) -> None:
    tiny_unlike("causal_lm", **unlike).model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_model_of_random_weights_has_the_widths_of_its_config() -> None:
    config = TINY["causal_lm"] | {KEY: {FFN: {"decoder": [8, 24]}, HEADS: GROUPS}}
    source = Scratch(config=config, tokenizer=Bytes(), max_length=32)
    family = source.load(task="causal_lm", texts=tuple, labels=())
    layers = [block.get_submodule("mlp.down_proj") for block in family.blocks()["decoder"]]
    assert [(layer.in_features, layer.get_parameter("weight").shape[1]) for layer in layers] == [(8, 8), (24, 24)]
    rows = [block.get_submodule("self_attn.q_proj").out_features for block in family.blocks()["decoder"]]
    assert rows == [16, 32]


def test_a_model_of_unlike_widths_is_cut_again(tiny_unlike: Tiny) -> None:
    """Fewer tokens, blocks and neurons of a model of unlike widths; what is alike then is a plain model."""
    family = tiny_unlike("causal_lm", **LLAMA)
    fewer = remove(family, {"decoder": [0, 1]}, {"vocabulary": {"": torch.arange(100)}})
    assert widths_of(fewer.model.config) == {FFN: {"decoder": [16, 48]}}
    shallow = remove(family, {"decoder": [0]}, {"vocabulary": {"": torch.arange(100)}})
    assert (widths_of(shallow.model.config), shallow.model.config.intermediate_size) == ({}, 16)
    names = [f"model.layers.{index}" for index in range(2)]
    alike = remove(family, {"decoder": [0, 1]}, {FFN: dict.fromkeys(names, torch.arange(12))})
    assert (widths_of(alike.model.config), alike.model.config.intermediate_size) == ({}, 12)
    with pytest.raises(ValueError, match=r"ffn of 'model.layers.0' must be rising indices in 0..15"):
        remove(family, {"decoder": [0, 1]}, {FFN: dict.fromkeys(names, torch.arange(17))})


def test_a_model_of_unlike_heads_is_cut_again(tiny_unlike: Tiny) -> None:
    family = tiny_unlike("causal_lm", GROUPS)
    config = family.model.config
    assert [units_of(config, axis, "decoder", 0) for axis in (HEADS, KV_HEADS)] == [2, 1]
    shallow = remove(family, {"decoder": [0]}, {"vocabulary": {"": torch.arange(100)}}).model.config
    assert (widths_of(shallow), shallow.num_attention_heads, shallow.num_key_value_heads) == ({}, 2, 1)
    names = [f"model.layers.{index}" for index in range(2)]
    alike = remove(family, {"decoder": [0, 1]}, head_rows(config, dict.fromkeys(names, torch.arange(1))))
    assert widths_of(alike.model.config) == {}
    with pytest.raises(ValueError, match=r"kv_heads of 'model.layers.0' must be rising indices in 0..7"):
        remove(family, {"decoder": [0, 1]}, head_rows(config, dict.fromkeys(names, torch.arange(2))))


def test_the_config_has_a_number_of_heads_that_transformers_loads(tiny: Tiny) -> None:
    """Heads divide the hidden width of a Llama, and three of four groups do not."""
    family = tiny("causal_lm", num_key_value_heads=4)
    for counts in ([3, 1], [3, 3]):
        kept = {f"model.layers.{index}": torch.arange(count) for index, count in enumerate(counts)}
        small = remove(family, {"decoder": [0, 1]}, head_rows(family.model.config, kept))
        config = small.model.config
        assert (widths_of(config), config.num_attention_heads) == ({HEADS: {"decoder": counts}}, 4)
        assert logits(small).isfinite().all()


@pytest.mark.parametrize(
    ("task", "values", "reason"),
    [
        ("seq2seq", {}, "the blocks of a stack share one table of positions"),
        ("seq2seq", {"model_type": "umt5"}, "a block of its decoder has two attentions"),
        ("causal_lm", {"model_type": "phi3"}, "divides its fused projection by the numbers of heads in the config"),
        ("classification", {}, "transformers has no size of a head of its own for this type"),
    ],
)
def test_types_whose_blocks_must_have_as_many_heads(tiny: Tiny, task: str, values: Any, reason: str) -> None:
    config = tiny(task, **values).model.config
    setattr(config, KEY, {HEADS: {}})
    with pytest.raises(ValueError, match=f"must not have heads for a model of type .*{reason}"):
        widths_of(config)


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ([1], "must have the axes heads, ffn, attention_rank, ffn_rank alone"),
        ({"hidden": {"decoder": [2, 2]}}, "must have the axes heads, ffn, attention_rank, ffn_rank alone"),
        ({"heads": {"decoder": [1, 3]}}, "from 0 to 2 a block"),
        ({"heads": GROUPS}, "do not belong together"),
        ({"ffn": {"encoder": [8, 8]}}, "must have, for each of decoder"),
        ({"ffn": {"decoder": [8]}}, "got decoder: [8]"),
        ({"ffn": {"decoder": [-1, 8]}}, "from 0 to 48 a block"),
        ({"ffn": {"decoder": [8, 49]}}, "from 0 to 48 a block"),
        ({"ffn": {"decoder": [8, "8"]}}, "from 0 to 48 a block"),
        ({"ffn": {"decoder": [8, 8]}}, "do not belong together"),
        ({"ffn_rank": {"decoder": [0, 4]}}, "slimexp_widths.ffn_rank must be 0 but where slimexp_widths.ffn is"),
        ({"ffn": {"decoder": [0, 48]}, "ffn_rank": {"decoder": [4, 4]}}, "must be 0 but where slimexp_widths.ffn is"),
        ({"ffn": {"decoder": [0, 48]}, "ffn_rank": {"decoder": [33, 0]}}, "whole number from 0 to 32 a block"),
        ({"ffn": {"decoder": [0, 48]}, "ffn_rank": {"decoder": [4]}}, "must have, for each of decoder"),
        ({"ffn": {"decoder": [0, 48]}, "ffn_rank": [4, 0]}, "must have, for each of decoder"),
        ({"ffn": {"decoder": [0, 48]}, "ffn_rank": {"decoder": [True, 0]}}, "whole number from 0 to 32 a block"),
    ],
)
def test_an_entry_that_does_not_fit_is_one_line(tiny_unlike: Tiny, entry: Any, rule: str, tmp_path: Path) -> None:
    artifact.save(tiny_unlike("causal_lm", **LLAMA), tmp_path / "artifact", dtype=torch.float32, stages=[])
    path = tmp_path / "artifact" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {KEY: entry}))
    source = Pretrained(path=str(path.parent), max_length=32)
    with pytest.raises(ValueError) as caught:
        source.load(task="causal_lm", texts=tuple, labels=())
    assert rule in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("lost", ["attention_rank", "ffn_rank"])
def test_a_map_that_the_config_has_lost_is_not_left_out(
    tiny: Tiny, bits: int | None, lost: str, tmp_path: Path
) -> None:
    family = tiny("causal_lm", **{KEY: MAPS})
    for layer in family.compressible().values() if bits else ():
        attach(layer, "weight", MinMax(bits=bits or 0, group_size=8))
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    path = tmp_path / "artifact" / "config.json"
    entry = {name: stacks for name, stacks in MAPS.items() if name != lost}
    path.write_text(json.dumps(json.loads(path.read_text()) | {KEY: entry}))
    for load in (artifact.load, artifact.served):
        with pytest.raises(ValueError, match="_rank" if bits else r"_rank\..*its config\.json has nothing there: "):
            load(path.parent)


def test_alike_widths_are_said_by_the_key_of_transformers(tiny: Tiny) -> None:
    config = tiny("seq2seq").model.config
    set_widths(config, FFN, {"encoder": [48, 48], "decoder": [48, 48]})
    assert not hasattr(config, KEY)
    assert class_of(AutoModelForCausalLM, config) is AutoModelForCausalLM
    set_widths(config, FFN, {"encoder": [48, 8], "decoder": [48, 48]})
    assert [units_of(config, FFN, "encoder", index) for index in range(2)] == [48, 8]
