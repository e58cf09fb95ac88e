"""Widths of single layers: the bits that they take are those of the artifact, and the model is left as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.allocation.mixed_precision import MixedPrecision
from slimexp.quantizer.minmax import MinMax
from slimexp.serialization.pack import pack
from slimexp.technique.bit_allocation import allocate_bits, stored_bits
from slimexp.technique.layer_quantizers import LayerQuantizers

Make = Callable[..., Any]
ALLOCATION = "+allocation@pipeline.quantize.allocation=mixed_precision"


def test_layers_differ_and_pack(tiny: Callable[..., Any], corpus: Callable[..., Any], technique: Any) -> None:
    rows = "pipeline.quantize.allocation.rows=4"
    stage = technique("quantize", ALLOCATION, rows, bits=4, group_size=8, activation_bits=None)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    reached = stage.finish()
    widths = {name: quantizer.bits for name, quantizer in stage.on_weights.items()}
    assert len(set(widths.values())) > 1
    assert reached["bits"] <= 4
    assert {f"bits/{name}": float(width) for name, width in widths.items()}.items() <= reached.items()
    costs = {bits: [reached[f"rounded_to_{bits}_nats/{name}"] for name in widths] for bits in (2, 8)}
    assert sum(costs[2]) > sum(costs[8]) and min(costs[8]) >= 0
    state, _ = pack(stage.model)
    taken = sum(tensor.nbytes for key, tensor in state.items() if key.endswith(("weight_packed", "weight_scale")))
    uniform = technique("quantize", bits=4, group_size=8, activation_bits=None)
    uniform.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    state, _ = pack(uniform.model)
    assert taken <= sum(
        tensor.nbytes for key, tensor in state.items() if key.endswith(("weight_packed", "weight_scale"))
    )


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_bits_that_layers_take_are_those_of_the_artifact(
    tiny: Make, corpus: Make, technique: Make, bits: int, symmetric: bool
) -> None:
    stage = technique("quantize", bits=bits, group_size=8, activation_bits=None, symmetric=symmetric)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    stage.finish()
    state, _ = pack(stage.model)
    packed = 8 * sum(tensor.nbytes for name, tensor in state.items() if name.endswith("weight_packed"))
    scales = sum(tensor.numel() for name, tensor in state.items() if name.endswith("weight_scale"))
    quantizer = MinMax(bits=bits, group_size=8, symmetric=symmetric)
    stored = sum(stored_bits(layer, quantizer) for layer in stage.layers.values())
    assert stored == packed + scales * (quantizer.scale_bits + (0 if symmetric else bits))


def test_layers_get_widths_within_the_budget_and_are_left_as_they_were(tiny: Make) -> None:
    family = tiny("causal_lm")
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    layers = family.compressible()
    quantizers = LayerQuantizers(MinMax, 8)
    widths, figures = allocate_bits(
        MixedPrecision(rows=2, widths=[2, 4, 8]),
        family,
        layers,
        quantizers=quantizers,
        bits=4,
        batches=[family.encode([(text, None, None)]) for text in ("one two", "three")],
        device=torch.device("cpu"),
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.model.state_dict().items())
    assert widths.keys() == layers.keys() and {*widths.values()} <= {2, 4, 8}

    def taken(of_layer: dict[str, int]) -> int:
        return sum(stored_bits(layers[name], quantizers.any(bits)) for name, bits in of_layer.items())

    assert taken(widths) <= taken(dict.fromkeys(layers, 4))
    assert {f"bits/{name}": float(bits) for name, bits in widths.items()}.items() <= figures.items()
    costs = {bits: [figures[f"rounded_to_{bits}_nats/{name}"] for name in layers] for bits in (2, 4, 8)}
    assert sum(costs[2]) > sum(costs[4]) > sum(costs[8]) and min(costs[8]) >= 0
