"""Smoothing leaves every model what it is; GPTQ works on every family, over masks too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.model.experts import stacks
from slimexp.model.layer import latent, place
from slimexp.quantizer.base import Quantizer
from slimexp.serialization.pack import pack
from slimexp.weight.attachment import attached
from slimexp.weight.mask import Mask

AWQ, SMOOTHQUANT, GPTQ = (
    f"+{group}@pipeline.quantize.{group}={name}"
    for group, name in (("smoothing", "awq"), ("smoothing", "smoothquant"), ("rounding", "gptq"))
)
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "moe_intermediate_size": 16, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "n_group": 1, "topk_group": 1,
}  # fmt: skip
MODELS = [
    ("seq2seq", {}, 13 / 16),  # all but keys and values of the decoder's cross-attention
    ("seq2seq", {"feed_forward_proj": "gated-gelu"}, 15 / 17),
    ("causal_lm", {}, 1),
    ("classification", {}, 1 / 7),  # the output of attention alone
    (
        "causal_lm",
        {"model_type": "deepseek_v3", **LATENT},
        0.73,
    ),  # not the output of attention, nor into shared experts
    ("causal_lm", {"model_type": "deepseek_v2", **LATENT, "q_lora_rank": None, "n_group": None}, 0.7),
]
Make = Callable[..., Any]


def quantize(technique: Make, *overrides: str, **settings: Any) -> Any:
    few = [f"{word.split('@')[1].split('=')[0]}.rows=6" for word in overrides if "@" in word]
    defaults = {"bits": 4, "group_size": 8, "activation_bits": None}
    return technique("quantize", *overrides, *few, **(defaults | settings))


def logits(family: Any) -> torch.Tensor:
    batch = family.encode([("one two", "one 2", 0), ("three", "3", 1)])
    with torch.no_grad():
        return family.forward(batch)[0]


@pytest.fixture(params=MODELS, ids=lambda model: f"{model[0]} {model[1].get('feed_forward_proj', '')}")
def case(request: pytest.FixtureRequest, tiny: Make, corpus: Make) -> Any:
    task, values, share = request.param
    family = tiny(task, **values)
    generator = torch.Generator().manual_seed(1)
    for parameter in family.model.parameters():  # norms and biases of their own, strong and weak channels
        if parameter.ndim == 1:
            parameter.data += 0.5 * torch.rand(parameter.shape, generator=generator)
    return family, corpus(task), share


@pytest.mark.parametrize(("smoothing", "activation_bits"), [(AWQ, None), (SMOOTHQUANT, 8)])
def test_before_rounding_the_model_is_what_it_was(
    smoothing: str, activation_bits: int | None, case: Any, technique: Make
) -> None:
    family, corpus, share = case
    before = logits(family)
    weights = {name: layer.weight.detach().clone() for name, layer in family.compressible().items()}
    bits, group = (8, None) if activation_bits else (4, 8)
    stage = quantize(technique, smoothing, bits=bits, group_size=group, activation_bits=activation_bits)
    stage.prepare(family, corpus, None)
    reached = stage.finish()
    for quantizer in (*stage.on_weights.values(), *stage.on_inputs.values()):
        quantizer.active = False
    torch.testing.assert_close(logits(family), before, rtol=0, atol=1e-5)
    moved = [name for name, layer in family.compressible().items() if not torch.allclose(layer.weight, weights[name])]
    assert moved
    assert reached["smoothed"] == pytest.approx(share, abs=0.1)


def test_gptq_on_every_family_keeps_zeros_and_packs(case: Any, technique: Make) -> None:
    family, corpus, _ = case
    pruned = technique("prune", sparsity=0.5)
    pruned.prepare(family, corpus, None)
    pruned.finish()
    stage = quantize(technique, GPTQ)
    stage.prepare(family, corpus, None)
    stage.finish()
    masks = {(at.module, at.tensor): a.mask for at, a in attached(family.model) if isinstance(a, Mask)}
    names = {module: name for name, module in family.model.named_modules()}
    for layer in stage.layers.values():
        module, tensor = place(layer)
        weight, mask = getattr(module, tensor).detach(), masks[names[module], tensor]
        assert (weight[~mask] == 0).all()
        groups = weight.unflatten(-1, (-1, 8)).flatten(0, -2)
        assert all(len(group.unique()) <= 16 for group in groups)
        assert torch.equal(weight, latent(layer) * mask)  # rounding found it on its grid
    pack(family.model)


@pytest.mark.parametrize("method", [AWQ, GPTQ])
@pytest.mark.parametrize("group_size", [8, "tensor"])
def test_same_grid_as_packed(method: str, group_size: int | str, case: Any, technique: Make) -> None:
    family, corpus, _ = case
    floats = {"exclude": "['*.experts.*']"} if group_size == "tensor" and stacks(family) else {}
    stage = quantize(technique, method, group_size=group_size, **floats)
    stage.prepare(family, corpus, None)
    stage.finish()
    on_weights = [a for at, a in attached(family.model) if isinstance(a, Quantizer) and at.tensor == "weight"]
    assert all(quantizer.frozen and quantizer.active for quantizer in on_weights)
    pack(family.model)


def test_layers_that_are_left_out_of_a_norm_that_scales_them_too(tiny: Make, corpus: Make, technique: Make) -> None:
    family = tiny("causal_lm")
    before = logits(family)
    stage = quantize(technique, AWQ, exclude="['*.k_proj', '*.gate_proj']")
    stage.prepare(family, corpus("causal_lm"), None)
    stage.finish()
    for quantizer in stage.on_weights.values():
        quantizer.active = False
    torch.testing.assert_close(logits(family), before, rtol=0, atol=1e-5)


def test_where_nothing_can_be_scaled_it_is_said_by_the_outline(tiny: Make, technique: Make) -> None:
    with torch.device("meta"):
        outline = tiny("causal_lm")
    quantize(technique, AWQ).inspect(outline)
    config = GPTNeoConfig(vocab_size=9, hidden_size=64, max_position_embeddings=9, num_layers=1, num_heads=1,
                          attention_types=[[["global"], 1]])  # fmt: skip
    with torch.device("meta"):
        outline.model = GPTNeoForCausalLM(config)
    with pytest.raises(ValueError, match="smoothing does not know where to scale a model of type gpt_neo;"):
        quantize(technique, AWQ).inspect(outline)


@pytest.mark.parametrize("method", [AWQ, GPTQ])
def test_what_is_not_finite_names_its_layer_and_batch(method: str, tiny: Make, corpus: Make, technique: Make) -> None:
    broken = tiny("causal_lm")
    broken.model.model.embed_tokens.weight.data.fill_(torch.nan)
    with pytest.raises(
        ValueError, match=r"layer 'model\.layers\.0\..*': what .* NaN or infinity in calibration batch 0"
    ):
        quantize(technique, method).prepare(broken, corpus("causal_lm"), None)
    broken = tiny("causal_lm")
    broken.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer 'model\.layers\.1\.mlp\.up_proj': its weight holds NaN"):
        quantize(technique, method).prepare(broken, corpus("causal_lm"), None)


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        ([SMOOTHQUANT], {}, "SmoothQuant is for quantized activations: set activation_bits=8, or choose awq"),
        ([AWQ, GPTQ], {}, r"would both choose the ranges of weights: set smoothing\.clip=false"),
        ([AWQ, "pipeline.quantize.smoothing.points=0"], {}, r"smoothing\.points must be >= 1, got 0"),
        ([SMOOTHQUANT, "pipeline.quantize.smoothing.alpha=2"], {"activation_bits": 8}, r"alpha must be in \[0, 1\]"),
    ],
)
def test_wrong_values(overrides: list[str], settings: dict[str, Any], message: str, technique: Make) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(technique, *overrides, **settings)


def test_gptq_beats_rounding_to_nearest_on_a_trained_model(technique: Make) -> None:
    """Three bits in the first block of the shipped Llama; held-out text."""
    cfg = compose(["model=llama_python_source", "data=python_source"])
    text, source = build(cfg.data), build(cfg.model)
    rows = [(row.source, row.target, row.label) for row in text.splits["validation"][:6]]
    losses = {}
    for name, overrides in (("nearest", []), ("gptq", [GPTQ, "pipeline.quantize.rounding.rows=16"])):
        family = source.load(task=text.task, texts=lambda: [], labels=())
        settings = {"include": "[model.layers.0.*]", "min_coverage": 0.01, "bits": 3, "group_size": 64}
        stage = technique("quantize", *overrides, activation_bits=None, **settings)
        stage.prepare(family, text, None)
        stage.finish()
        batch = family.encode(rows)
        with torch.no_grad():
            answers = family.forward(batch)[0].flatten(0, 1)
        losses[name] = float(torch.nn.functional.cross_entropy(answers, batch["labels"].flatten()))
    assert losses["gptq"] < losses["nearest"]
