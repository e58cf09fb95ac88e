"""Torch's product of integers computes what the packed layer means."""

from collections.abc import Callable

import pytest
import torch

from slimexp.kernel.base import Packed
from slimexp.kernel.int_mm import IntMM

Make = Callable[..., Packed]


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("activation", ["token", 0.03])
def test_inputs_rounded_as_trained(
    packed: Make, distance: Callable[..., float], rows: int, bits: int, activation: object
) -> None:
    assert distance(IntMM, packed(33, 37, 37, bits=bits, activation=activation), rows) < 1e-6
    assert distance(IntMM, packed(64, 64, 64, bits=bits, activation=activation, bias=None), rows) < 1e-6


@pytest.mark.parametrize("activation", ["token", 0.03])
def test_shapes_types_and_odd_inputs(packed: Make, activation: object) -> None:
    layer = IntMM(packed(33, 37, 37, activation=activation))
    x = torch.randn(2, 3, 37)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer(x).shape == (2, 3, 33) and layer(x[0, 0]).shape == (33,) and layer(x[:0]).shape == (0, 3, 33)
    x[1, 1, 5] = float("nan")
    assert layer(x)[1, 1].isnan().all() and layer(x)[0].isfinite().all()


def test_what_it_refuses(packed: Make) -> None:
    cpu = torch.device("cpu")
    assert IntMM.refusal(packed(8, 8, 8), cpu) is None
    assert "not on mps" in str(IntMM.refusal(packed(8, 8, 8), torch.device("mps")))
    assert "multiples of 8, got 33 and 8" in str(IntMM.refusal(packed(33, 8, 8), torch.device("cuda")))
    assert "left in float" in str(IntMM.refusal(packed(8, 8, 8, activation=None), cpu))
    assert "one scale per row" in str(IntMM.refusal(packed(8, 8, 4), cpu))
    assert "no zero point" in str(IntMM.refusal(packed(8, 8, 8, zero=torch.ones(8, 1)), cpu))
    assert "rows must be at most" in str(IntMM.refusal(packed(1, 140_000, 140_000), cpu))
