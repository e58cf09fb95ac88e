"""Torch's product of float8 computes what the packed layer means."""

from collections.abc import Callable

import pytest
import torch

from slimexp.kernel.base import FLOAT8, Packed
from slimexp.kernel.scaled_mm import ScaledMM

Make = Callable[..., Packed]
Distance = Callable[..., float]
CPU = torch.device("cpu")
ORDER = 2e-6  # of adding up


@pytest.fixture
def float8(packed: Make) -> Make:
    def make(out: int, size: int, group: int | None = None, **more: object) -> Packed:
        layer = packed(out, size, group or size, **more)
        return layer._replace(numbers=layer.numbers.float().to(FLOAT8))

    return make


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("activation", ["token", 0.03, None])
def test_inputs_rounded_as_trained(float8: Make, distance: Distance, rows: int, activation: object) -> None:
    assert distance(ScaledMM, float8(48, 64, activation=activation), rows) < ORDER
    assert distance(ScaledMM, float8(64, 32, activation=activation, bias=None), rows) < ORDER


@pytest.mark.parametrize("activation", ["token", 0.03, None])
def test_shapes_types_and_odd_inputs(float8: Make, activation: object) -> None:
    layer = ScaledMM(float8(48, 64, activation=activation))
    x = torch.randn(2, 3, 64)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer(x).shape == (2, 3, 48) and layer(x[0, 0]).shape == (48,) and layer(x[:0]).shape == (0, 3, 48)
    x[1, 1, 5] = float("nan")
    assert layer(x)[1, 1].isnan().all() and layer(x)[0].isfinite().all()


def test_what_it_refuses(packed: Make, float8: Make) -> None:
    assert ScaledMM.refusal(float8(16, 32), CPU) is None
    assert "not torch.int8" in str(ScaledMM.refusal(packed(16, 32, 32), CPU))
    assert "one scale per row" in str(ScaledMM.refusal(float8(16, 32, 16), CPU))
    assert "multiples of 16, got 24 and 32" in str(ScaledMM.refusal(float8(24, 32), CPU))
    assert "not on mps" in str(ScaledMM.refusal(float8(16, 32), torch.device("mps")))
