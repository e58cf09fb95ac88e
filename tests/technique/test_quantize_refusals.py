"""What quantization refuses before anything is loaded: settings, and models that transformers could not load again."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, T5Config

from slimexp.model.causal_lm import CausalLm
from slimexp.model.tokenizer import Bytes
from slimexp.technique.compatibility import check_stages

Make = Callable[..., Any]
MIXED = "+allocation@pipeline.quantize.allocation=mixed_precision"
LLAMA = LlamaConfig(hidden_size=32, num_attention_heads=4)
T5 = T5Config(d_model=16, d_kv=8, num_heads=2)


@pytest.fixture
def quantize(technique: Make) -> Make:
    """Overrides and values -> a quantize stage."""
    return lambda *overrides, **settings: technique("quantize", *overrides, **settings)


def by(quantizer: str, place: str = "quantizer") -> str:
    return f"quantizer@pipeline.quantize.{place}={quantizer}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 9}, "bits must be 2 to 8, got 9"),
        ({"group_size": 0}, "group_size must be >= 1"),
        ({"activation_bits": 4}, "activation_bits must be 8, or null"),
        ({"symmetric": "false", "activation_bits": None, "bits": 1}, "bits must be 2 to 8, got 1"),
        ({"cache_bits": 2}, "cache_bits must be 8, 4, or null"),
        ({"calibration_rows": 0}, "calibration_rows must be >= 1, got 0"),
        ({"min_coverage": 0}, r"min_coverage must be in \(0, 1\], a share of the model's parameters, got 0"),
        ({"min_coverage": 1.5}, r"min_coverage must be in \(0, 1\]"),
        ({"start": 0.5, "freeze": 0.2}, r"freeze must be in \[start, 1\] = \[0.5, 1\]"),
        ({"start": 1.5}, r"start must be in \[0, 1\], got 1.5"),
        ({"embeddings": "true"}, r"transformers loads quantized embeddings only .*: set activation_bits=null"),
    ],
)
def test_wrong_values(quantize: Make, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(**settings)


def test_a_quantizer_of_weights_cannot_round_activations(quantize: Make) -> None:
    with pytest.raises(ValueError, match="MinMax rounds weights: for activations choose token"):
        quantize(by("minmax", "activation_quantizer"))


@pytest.mark.parametrize("option", ["static", "token", "pact", "fp8_static", "fp8_token"])
def test_a_quantizer_of_activations_cannot_round_weights(quantize: Make, option: str) -> None:
    with pytest.raises(ValueError, match="rounds activations: for weights choose minmax"):
        quantize(by(option))


@pytest.mark.parametrize(("weights", "inputs"), [("fp8", "token"), ("minmax", "fp8_token"), ("fp8", "static")])
def test_no_kernel_multiplies_integers_with_fp8(quantize: Make, weights: str, inputs: str) -> None:
    with pytest.raises(ValueError, match="no kernel multiplies integers with fp8"):
        quantize(by(weights), by(inputs, "activation_quantizer"))


def test_an_allocation_of_widths_that_the_quantizer_lacks(quantize: Make) -> None:
    message = r"Fp8 has 8 bits alone, so allocation cannot give layers .*: set allocation=null"
    with pytest.raises(ValueError, match=message):
        quantize(by("fp8"), MIXED, activation_bits=None)


def test_an_allocation_of_sparsities(quantize: Make) -> None:
    with pytest.raises(ValueError, match=r"allocation must be mixed_precision, given or null .*, got Sensitivity"):
        quantize("+allocation@pipeline.quantize.allocation=sensitivity")


def test_a_budget_below_the_least_width(quantize: Make) -> None:
    with pytest.raises(ValueError, match=r"bits=2 is less than the first of allocation\.widths, 3"):
        quantize(MIXED, "pipeline.quantize.allocation.widths=[3,8]", bits=2, activation_bits=None)


def test_what_could_not_be_loaded_is_refused_before_training(quantize: Make) -> None:
    with pytest.raises(ValueError, match="set activation_bits=null, or bits=8"):
        quantize(bits=4, activation_bits=8).validate(T5, [])
    with pytest.raises(ValueError, match="4-bit weights with zero points beside quantized activations: set symmetric"):
        quantize(bits=4, activation_bits=8, symmetric="false").validate(LLAMA, [])
    quantize(bits=8, activation_bits=8, symmetric="false").validate(LLAMA, [])
    mixed = quantize(MIXED, bits=4, activation_bits=None)
    mixed.validate(LLAMA, [])
    with pytest.raises(ValueError, match="one width for all layers: set allocation=null"):
        mixed.validate(T5, [])


def test_a_model_without_a_cache_is_refused_before_training(quantize: Make) -> None:
    with pytest.raises(ValueError, match="a bert reads a text at once and caches no keys and values"):
        quantize(cache_bits=8).validate(BertConfig(), [])


@pytest.mark.parametrize("before", [{}, {"prune_structured": {"axes": "[ffn]"}}])
def test_a_model_of_conv1d_is_refused_before_any_stage_is_done(technique: Make, before: dict[str, Any]) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    family = CausalLm(gpt2, Bytes().build([]), max_length=16)
    chain = {name: technique(name, **settings) for name, settings in {**before, "quantize": {}}.items()}
    source, corpus = SimpleNamespace(outline=lambda **_: family), SimpleNamespace(task="causal_lm", labels=())
    message = r"GPT2LMHeadModel keeps .* in Conv1D, and transformers loads .* Linear layers alone: prune or distil it"
    with pytest.raises(ValueError, match=message):
        check_stages(chain, source, corpus, gpt2.config)  # type: ignore[arg-type]


def test_a_pipeline_quantizes_once(quantize: Make) -> None:
    with pytest.raises(ValueError, match="a pipeline quantizes once: remove one of its quantize stages"):
        quantize().validate(LLAMA, [quantize()])
