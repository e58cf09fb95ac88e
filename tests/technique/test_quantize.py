from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slimexp import artifact
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data.base import Corpus, Example, Split
from slimexp.kernel.base import FLOAT8
from slimexp.model.base import Batch
from slimexp.model.causal_lm import CausalLm
from slimexp.model.execution import kernel
from slimexp.model.tokenizer import Bytes
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Granularity
from slimexp.serialization.pack import pack
from slimexp.serialization.unpack import unpacked
from slimexp.technique.quantize import Quantize
from slimexp.weight.attachment import INPUT, attached
from slimexp.weight.mask import Mask


class FourWords(Corpus):
    """Four words."""

    task = "causal_lm"
    headline = "exact_match"
    direction = "max"

    def load(self) -> Mapping[Split, Sequence[Example]]:
        rows = [Example(source=word) for word in ("one", "two", "three", "four")]
        return {"train": rows, "validation": rows, "test": rows}

    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return {"exact_match": 0.0}

    def trivial(self, examples: Sequence[Example]) -> float:
        return 0.0


def family() -> CausalLm:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    return CausalLm(LlamaForCausalLM(config).eval(), Bytes().build([]), max_length=16)


def technique(name: str, **settings: object) -> Any:
    """A technique of conf/, at a tiny size."""
    tiny = {"steps": 0, "batch_size": 2} | settings
    return build(compose([f"pipeline={name}", *(f"pipeline.{name}.{k}={v}" for k, v in tiny.items())]).pipeline[name])


def quantize(**settings: object) -> Quantize:
    return technique("quantize", **settings)


def batch(model: CausalLm) -> Batch:
    return model.encode([("one", None, None), ("three", None, None)])


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 16), (2, None), (4, "tensor")])
def test_after_training_every_compressible_layer_is_on_its_grid(bits: int, group_size: int | str | None) -> None:
    stage = quantize(bits=bits, group_size="null" if group_size is None else group_size)
    stage.prepare(family(), FourWords(), None)
    coverage = stage.finish()
    for layer in stage.layers.values():
        groups = Granularity(group_size).split(layer.weight.detach()).flatten(0, -2)
        assert all(len(group.unique()) <= 2**bits for group in groups)
    assert coverage["bits"] == bits
    assert 0.25 < coverage["share"] < 1


@pytest.mark.parametrize("activation_bits", [8, None])
def test_activations_only_where_asked_for(activation_bits: int | None) -> None:
    stage = quantize(activation_bits="null" if activation_bits is None else activation_bits)
    stage.prepare(family(), FourWords(), None)
    inputs = [place.module for place, _ in attached(stage.model) if place.tensor == INPUT]
    assert inputs == ([] if activation_bits is None else list(stage.layers))


@torch.no_grad()
def test_eight_bits_change_little_and_two_bits_much() -> None:
    dense = family()
    expected, _ = dense.forward(batch(dense))
    errors = []
    for bits in (8, 2):
        stage = quantize(bits=bits)
        stage.prepare(family(), FourWords(), None)
        stage.finish()
        errors.append((stage.family.forward(batch(stage.family))[0] - expected).norm() / expected.norm())
    assert 0 < errors[0] < 0.02 < errors[1]


@torch.no_grad()
def test_until_start_the_model_is_untouched() -> None:
    dense = family()
    stage = quantize(steps=10, start=0.5)
    stage.prepare(family(), FourWords(), None)
    expected = dense.forward(batch(dense))[0]
    stage.on_step(0.4)
    assert torch.equal(stage.family.forward(batch(dense))[0], expected)
    stage.on_step(0.5)
    assert not torch.equal(stage.family.forward(batch(dense))[0], expected)


def test_earlier_masks_are_kept_through_training_and_into_the_packed_weights() -> None:
    pruned = technique("prune", sparsity=0.5)
    pruned.prepare(family(), FourWords(), None)
    pruned.finish()
    stage = quantize(steps=4, bits=4, group_size=16, activation_bits="null", **{"optimizer.weight_decay": 0.5})
    stage.prepare(pruned.family, FourWords(), None)
    before = {name: layer.weight.detach().clone() for name, layer in stage.layers.items()}
    masks = {place.module: a.mask.clone() for place, a in attached(stage.model) if isinstance(a, Mask)}
    pl.seed_everything(0, verbose=False)
    build(compose().trainer, max_steps=4, logger=False, enable_progress_bar=False).fit(stage)
    stage.finish()
    for name, layer in stage.layers.items():
        assert (layer.weight[~masks[name]] == 0).all()
        assert not torch.equal(layer.weight, before[name])
    state, _ = pack(stage.model)  # refuses weights off the grid
    assert all(f"{name}.weight_packed" in state for name in stage.layers)


def fit(stage: Quantize, steps: int) -> None:
    pl.seed_everything(0, verbose=False)
    build(compose().trainer, max_steps=steps, logger=False, enable_progress_bar=False).fit(stage)
    stage.finish()


def test_zeros_of_a_pruned_model_stay_on_affine_grids() -> None:
    pruned = technique("prune", sparsity=0.5)
    pruned.prepare(family(), FourWords(), None)
    pruned.finish()
    stage = quantize(steps=4, bits=4, group_size=16, activation_bits="null", symmetric="false")
    stage.prepare(pruned.family, FourWords(), None)
    masks = {place.module: a.mask.clone() for place, a in attached(stage.model) if isinstance(a, Mask)}
    fit(stage, 4)
    assert all((layer.weight[~masks[name]] == 0).all() for name, layer in stage.layers.items())
    state, _ = pack(stage.model)
    assert all(f"{name}.weight_zero_point" in state for name in stage.layers)


@pytest.mark.parametrize(("name", "symmetric"), [("minmax", "true"), ("minmax", "false"), ("lsq", "true")])
def test_zeros_of_a_pruned_model_are_zeros_of_the_packed_one(name: str, symmetric: str, tmp_path: Path) -> None:
    """Trained on under weight decay, saved, and read back by plain transformers."""
    pruned = technique("prune", sparsity=0.5)
    pruned.prepare(family(), FourWords(), None)
    pruned.finish()
    settings = {"bits": 4, "group_size": 16, "activation_bits": "null", "symmetric": symmetric}
    stage = with_quantizer(name, steps=4, **settings, **{"optimizer.weight_decay": 0.5})
    stage.prepare(pruned.family, FourWords(), None)
    fit(stage, 4)
    artifact.save(stage.family, tmp_path / "a", dtype=torch.bfloat16, stages=[])
    masks = {place.module: a.mask for place, a in attached(stage.model) if isinstance(a, Mask)}
    layers = artifact.deployed(tmp_path / "a").compressible()
    assert masks.keys() == layers.keys()
    for layer_name, mask in masks.items():
        assert mask.float().mean() == 0.5
        assert (layers[layer_name].weight[~mask] == 0).all()
        assert torch.equal(layers[layer_name].weight, stage.layers[layer_name].weight)


def with_quantizer(name: str, place: str = "quantizer", **settings: object) -> Quantize:
    overrides = [
        f"pipeline.quantize.{key}={value}" for key, value in ({"steps": 0, "batch_size": 2} | settings).items()
    ]
    chosen = f"quantizer@pipeline.quantize.{place}={name}"
    return build(compose(["pipeline=quantize", chosen, *overrides]).pipeline.quantize)


def with_quantizers(weights: str, inputs: str, **settings: object) -> Quantize:
    values = {"steps": 0, "batch_size": 2} | settings
    chosen = [f"quantizer@pipeline.quantize.{place}={name}"
              for place, name in (("quantizer", weights), ("activation_quantizer", inputs))]  # fmt: skip
    overrides = [f"pipeline.quantize.{key}={value}" for key, value in values.items()]
    return build(compose(["pipeline=quantize", *chosen, *overrides]).pipeline.quantize)


def test_learned_steps_move_and_are_packed() -> None:
    stage = with_quantizer("lsq", steps=6, bits=3, group_size=16, activation_bits="null", **{"optimizer.lr": 1e-2})
    stage.prepare(family(), FourWords(), None)
    before = {name: quantizer.moved.detach().clone() for name, quantizer in stage.on_weights.items()}
    fit(stage, 6)
    assert all(not torch.equal(quantizer.moved, before[name]) for name, quantizer in stage.on_weights.items())
    pack(stage.model)


@pytest.mark.parametrize("name", ["pact", "lsq"])
def test_learned_ranges_of_activations_move_and_are_what_is_loaded(name: str, tmp_path: Path) -> None:
    settings = {"steps": 6, "optimizer.lr": 1e-2, "bits": 8}
    stage = with_quantizer(name, "activation_quantizer", **settings)
    stage.prepare(family(), FourWords(), None)
    before = {layer: next(quantizer.parameters()).detach().clone() for layer, quantizer in stage.on_inputs.items()}
    fit(stage, 6)
    moved = [not torch.equal(next(one.parameters()), before[layer]) for layer, one in stage.on_inputs.items()]
    assert sum(moved) > 0.5 * len(moved)  # what nothing was clipped by stays
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    expected = stage.family.forward(batch(stage.family))[0]
    for again in (artifact.load(tmp_path / "a"), artifact.deployed(tmp_path / "a")):
        assert torch.allclose(again.forward(batch(again))[0], expected, atol=1e-5)


@pytest.mark.parametrize(("share", "frozen"), [(0.5, True), ("null", False)])
def test_grids_stay_from_freeze_on(share: object, frozen: bool) -> None:
    stage = quantize(steps=4, bits=4, freeze=share)
    stage.prepare(family(), FourWords(), None)
    layer, quantizer = next(iter(stage.layers.values())), next(iter(stage.on_weights.values()))
    stage.on_step(0.25)
    assert not quantizer.frozen
    stage.on_step(0.5)
    assert quantizer.frozen == frozen
    grid = quantizer.grid(layer.weight)
    layer.parametrizations.weight.original.data.mul_(3)
    assert torch.equal(quantizer.grid(layer.parametrizations.weight.original).scale, grid.scale) == frozen


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_static_activations_are_calibrated_on_training_text(ranges: str) -> None:
    overrides = ["quantizer@pipeline.quantize.activation_quantizer=static", "pipeline=quantize"]
    overrides += [f"quantizer@pipeline.quantize.activation_quantizer.range={ranges}", "pipeline.quantize.steps=0"]
    stage = build(compose(overrides).pipeline.quantize)
    dense = family()
    expected, _ = dense.forward(batch(dense))
    stage.prepare(family(), FourWords(), None)
    stage.finish()
    assert all(quantizer.scale.shape == (1,) for quantizer in stage.on_inputs.values())
    actual, _ = stage.family.forward(batch(stage.family))
    assert 0 < (actual - expected).norm() < 0.03 * expected.norm()
    state, config = pack(stage.model)
    assert all(f"{name}.input_scale" in state for name in stage.layers)
    assert not config["config_groups"]["group_0"]["input_activations"]["dynamic"]


def test_layers_by_name() -> None:
    stage = quantize(exclude="['*.down_proj']", min_coverage=0.1)
    stage.prepare(family(), FourWords(), None)
    assert stage.layers
    assert not any(name.endswith("down_proj") for name in stage.layers)
    _, config = pack(stage.model)
    assert "model.layers.0.mlp.down_proj" in config["ignore"]
    with pytest.raises(ValueError, match=r"include: no layer is called 'nothing\*'"):
        quantize(include="['nothing*']").prepare(family(), FourWords(), None)


def test_what_is_not_finite_names_its_layer_and_batch() -> None:
    broken = family()
    broken.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer 'model.layers.1.mlp.up_proj': its weight holds NaN"):
        quantize().prepare(broken, FourWords(), None)
    broken = family()
    broken.model.model.embed_tokens.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"layer 'model.layers.0.*': its input holds NaN or infinity in .* batch 0"):
        with_quantizer("static", "activation_quantizer").prepare(broken, FourWords(), None)


@pytest.mark.parametrize("inputs", [None, "fp8_token", "fp8_static"])
def test_fp8_is_trained_and_what_is_loaded_is_what_was_trained(inputs: str | None, tmp_path: Path) -> None:
    settings = {} if inputs is not None else {"activation_bits": "null"}
    stage = with_quantizers("fp8", inputs or "token", steps=3, **settings)
    stage.prepare(family(), FourWords(), None)
    before = {name: layer.weight.detach().clone() for name, layer in stage.layers.items()}
    fit(stage, 3)
    assert not any(torch.equal(layer.weight, before[name]) for name, layer in stage.layers.items())
    artifact.save(stage.family, tmp_path / "a", dtype=torch.bfloat16, stages=[])
    for again in (artifact.load(tmp_path / "a"), artifact.deployed(tmp_path / "a")):
        for name, layer in stage.layers.items():
            assert torch.equal(again.model.get_submodule(name).weight, layer.weight)
    for name, packed in unpacked(tmp_path / "a").items():
        assert packed.numbers.dtype == FLOAT8 and torch.equal(packed.weight(), stage.layers[name].weight)
    artifact.save(stage.family, tmp_path / "b", dtype=torch.float32, stages=[])
    expected = stage.family.forward(batch(stage.family))[0]
    plain = artifact.deployed(tmp_path / "b")
    assert torch.allclose(plain.forward(batch(plain))[0], expected, atol=1e-5)
    assert kernel(plain.model, tmp_path / "b").startswith("fp8 dequantized -> float32 matmul")


def test_quantizing_twice_is_an_error() -> None:
    stage = quantize()
    stage.prepare(family(), FourWords(), None)
    with pytest.raises(ValueError, match="the model is quantized already"):
        quantize().prepare(stage.family, FourWords(), None)
    on_weights = [a for place, a in attached(stage.model) if isinstance(a, Quantizer) and place.tensor == "weight"]
    assert len(on_weights) == len(stage.layers)


def test_a_group_size_that_does_not_divide_names_the_layer() -> None:
    with pytest.raises(ValueError, match=r"layer 'model\..*': group_size must divide the length of a row, got 20"):
        quantize(group_size=20).prepare(family(), FourWords(), None)


@torch.no_grad()
def test_keys_and_values_are_rounded_from_start_on_and_by_what_is_loaded(tmp_path: Path) -> None:
    stages = {bits: quantize(steps=10, start=0.5, activation_bits="null", cache_bits=bits) for bits in ("null", 4)}
    logits = {}
    for bits, stage in stages.items():
        stage.prepare(family(), FourWords(), None)
        stage.on_step(0.4)
        before = stage.family.forward(batch(stage.family))[0]
        assert torch.equal(before, logits.setdefault("before", before))
        stage.finish()
        logits[bits] = stage.family.forward(batch(stage.family))[0]
    assert 1e-3 < (logits[4] - logits["null"]).norm() / logits["null"].norm() < 0.1
    folder = tmp_path / "a"
    artifact.save(stages[4].family, folder, dtype=torch.float32, stages=[])
    assert artifact.read_manifest(folder)["cache_bits"] == 4
    for load, most in ((artifact.load, 1e-4), (artifact.deployed, 1e-4), (artifact.served, 0.05)):
        again = load(folder)  # what serves may round inputs too, whichever kernel was fastest
        assert (again.forward(batch(again))[0] - logits[4]).norm() < most * logits[4].norm()
        assert kernel(again.model, folder).endswith("keys and values cached in 4 bits, dequantized at every step")


def test_too_little_coverage() -> None:
    with pytest.raises(ValueError, match="min_coverage"):
        quantize(min_coverage=0.99).prepare(family(), FourWords(), None)


FLATTENED: dict[str, dict[str, Any]] = {  # they call layers with tokens in one row, [N, D]
    "opt": {
        "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64,
        "do_layer_norm_before": True,
    },
    "qwen2-moe": {
        "model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_intermediate_size": 12,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FLATTENED)
@torch.no_grad()
def test_models_that_flatten_their_tokens_are_trained_on_and_served_alike(
    name: str, tiny: Callable[..., Any], corpus: Callable[..., Any], technique: Callable[..., Any], tmp_path: Path
) -> None:
    """What a next stage loads computes what was quantized, and so do the kernels."""
    stage = technique("quantize", bits=8, activation_bits=8, min_coverage=0.01, min_block_coverage=0.01)
    stage.prepare(tiny("causal_lm", **FLATTENED[name]), corpus("causal_lm"), None)
    stage.finish()
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    batch = stage.family.encode([("one and two", None, None), ("three", None, None)])
    expected = stage.family.forward(batch)[0]
    assert torch.equal(artifact.load(tmp_path / "a").forward(batch)[0], expected)
    served = artifact.served(tmp_path / "a").forward(batch)[0]
    assert (served - expected).norm() < 2e-2 * expected.norm()
