"""The label of what executes in a model's linear layers: in memory, simulated, and loaded again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.model.base import Family
from slimexp.model.execution import kernel
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.fp8_token import Fp8Token
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token
from slimexp.weight.attachment import INPUT, attach

Make = Callable[..., Any]


def quantized(family: Family, weight: Quantizer, activation: Quantizer | None = None) -> Family:
    """``family`` with quantizers like these on every layer."""
    for layer in family.compressible().values():
        attach(layer, "weight", type(weight)(**weight.arguments()))
        if activation is not None:
            attach(layer, INPUT, type(activation)(**activation.arguments()))
    family.model.eval()
    return family


def test_floating_point_weights(tiny: Make) -> None:
    family = tiny("causal_lm")
    assert kernel(family.model) == "float32 matmul"
    next(iter(family.compressible().values())).weight.data[::2] = 0
    assert kernel(family.model) == "float32 matmul (zeros multiplied like all else)"


def test_attachments_are_a_simulation(tiny: Make) -> None:
    family = quantized(tiny("causal_lm"), MinMax(bits=8, group_size=None), Token(bits=8, group_size=None))
    assert kernel(family.model) == "float32 matmul, simulated by MinMax, Token"


@pytest.mark.parametrize(
    ("weight", "activation", "expected"),
    [
        (MinMax(bits=4, group_size=None), None, "int4 dequantized -> float32 matmul"),
        (
            MinMax(bits=8, group_size=None),
            Token(bits=8, group_size=None),
            "int8 dequantized -> float32 matmul, activations rounded to int8 in float32",
        ),
        (Fp8(bits=8, group_size=None), None, "fp8 dequantized -> float32 matmul"),
        (
            Fp8(bits=8, group_size=None),
            Fp8Token(bits=8, group_size=None),
            "fp8 dequantized -> float32 matmul, activations rounded to fp8 in float32",
        ),
    ],
)
def test_plain_transformers_dequantizes(
    weight: Quantizer, activation: Quantizer | None, expected: str, tiny: Make, tmp_path: Path
) -> None:
    family = quantized(tiny("causal_lm"), weight, activation)
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    assert kernel(artifact.deployed(tmp_path / "artifact").model, tmp_path / "artifact") == expected


def test_a_rounded_cache_is_named(tiny: Make) -> None:
    family = tiny("causal_lm")
    family.model.config.cache_bits = 4
    assert kernel(family.model) == "float32 matmul; keys and values cached in 4 bits, dequantized at every step"


@pytest.mark.parametrize("stored", [None, {}, {"config_groups": None}, {"config_groups": {}}], ids=str)
def test_a_config_without_groups_is_of_floats(stored: Any, tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": stored}))
    assert kernel(tiny("causal_lm").model, tmp_path) == "float32 matmul"
