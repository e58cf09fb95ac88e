"""Tiny models of every architecture that the fused kernels run, and layers whose weights are integers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from slimexp.kernel.base import FLOAT8, Packed
from slimexp.kernel.scaled_mm import ScaledMM
from slimexp.model.widths import class_of
from slimexp.quantizer.minmax import MinMax

SIZES = {
    "vocab_size": 67, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 64}),
}


@pytest.fixture(scope="session")
def sizes() -> dict[str, Any]:
    """Settings of a config with two blocks."""
    return SIZES


@pytest.fixture(scope="session")
def model_of() -> Callable[..., PreTrainedModel]:
    """Architecture (and values of its config) -> a model of random weights, always the same."""

    def build(name: str, device: str = "cpu", **values: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        kind, config, more = MODELS[name]
        made = config(**SIZES | more | values)
        model: PreTrainedModel = class_of(kind, made)(made).eval()
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:
                nn.init.normal_(parameter, 1.0, 0.2)
        return model.to(device)

    return build


@pytest.fixture(scope="session")
def in_float8() -> Callable[[nn.Linear], ScaledMM]:
    """A linear layer -> the same with float8 weights, its inputs left in float."""

    def build(layer: nn.Linear) -> ScaledMM:
        scale = layer.weight.detach().abs().amax(-1, keepdim=True) / 448
        return ScaledMM(Packed((layer.weight.detach() / scale).to(FLOAT8), scale, None, 8, layer.bias, None))

    return build


@pytest.fixture(scope="session")
def rounded() -> Callable[[nn.Linear, int, int | None], Packed]:
    """Layer, bits, group -> its weights to nearest, symmetric: one scale per row, or per ``group`` of its weights."""

    def make(layer: nn.Linear, bits: int, group: int | None) -> Packed:
        quantizer = MinMax(bits=bits, group_size=group)
        weight = layer.weight.detach().float()
        grid = quantizer.fitted(weight)
        bias = None if layer.bias is None else layer.bias.detach().float()
        return Packed(quantizer.integers(weight, grid), grid.scale, grid.zero, bits, bias, None)

    return make
