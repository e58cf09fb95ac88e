"""Bits per layer: the exact optimum under a budget, by a scan that leaves the model what it was."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.packing import pack
from slimexp.technique.mixed_precision import MixedPrecision

ALLOCATION = "+allocation@pipeline.quantize.allocation=mixed_precision"


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_exact_against_all_choices(seed: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    allocation = MixedPrecision(rows=1, widths=[2, 4, 8])
    sizes = {name: int(random.integers(1, 9)) for name in "abcde"}
    growth = {name: sorted(random.random(3), reverse=True) for name in sizes}
    chosen = allocation.choose(growth, sizes, bits)
    column = {width: i for i, width in enumerate(allocation.widths)}

    def total(widths: dict[str, int]) -> float:
        return sum(growth[name][column[width]] for name, width in widths.items())

    def taken(widths: dict[str, int]) -> int:
        return sum(sizes[name] * width for name, width in widths.items())

    choices = [dict(zip(sizes, choice, strict=True)) for choice in product(allocation.widths, repeat=5)]
    fitting = [widths for widths in choices if taken(widths) <= bits * sum(sizes.values())]
    assert chosen in fitting
    assert total(chosen) == pytest.approx(min(map(total, fitting)))


@pytest.mark.fast
def test_the_scan_puts_weights_back() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    growth = MixedPrecision(rows=1, widths=[2, 4, 8]).scan(
        {"layer": weight},
        quantizer=lambda bits: MinMax(bits=bits, group_size=None),
        loss=lambda: float((weight - before).square().sum()),
    )
    assert torch.equal(weight, before)
    assert growth["layer"][0] > growth["layer"][1] > growth["layer"][2] > 0


def test_layers_differ_and_pack(tiny: Callable[..., Any], corpus: Callable[..., Any], technique: Any) -> None:
    rows = "pipeline.quantize.allocation.rows=4"
    stage = technique("quantize", ALLOCATION, rows, bits=4, group_size=8, activation_bits=None)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    reached = stage.finish()
    widths = {name: quantizer.bits for name, quantizer in stage.on_weights.items()}
    assert len(set(widths.values())) > 1
    assert reached["bits"] <= 4
    assert {f"bits/{name}": float(width) for name, width in widths.items()}.items() <= reached.items()
    pack(stage.model)


@pytest.mark.fast
@pytest.mark.parametrize("widths", [[4], [4, 2], [1, 4], [2, 9]])
def test_wrong_widths(widths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"allocation\.widths must be two or more, ascending, in 2\.\.8"):
        MixedPrecision(rows=1, widths=widths)


def test_an_allocation_of_sparsities(technique: Any) -> None:
    with pytest.raises(ValueError, match=r"allocation must be mixed_precision or null .*, got Sensitivity"):
        technique("quantize", "+allocation@pipeline.quantize.allocation=sensitivity")


def test_a_budget_below_the_least_width(technique: Any) -> None:
    with pytest.raises(ValueError, match=r"bits=2 is less than the first of allocation\.widths, 3"):
        technique("quantize", ALLOCATION, "pipeline.quantize.allocation.widths=[3,8]", bits=2, activation_bits=None)
