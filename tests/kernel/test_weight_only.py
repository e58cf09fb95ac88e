"""Torch's products with integer weights compute what the packed layer means, as well as bfloat16 can."""

from collections.abc import Callable

import pytest
import torch

from slimexp.kernel.base import Packed
from slimexp.kernel.weight_only import WeightOnly4, WeightOnly8

CPU = torch.device("cpu")
Make = Callable[..., Packed]


@pytest.mark.parametrize("rows", [1, 17])
def test_they_compute_the_same(packed: Make, distance: Callable[..., float], rows: int) -> None:
    zero = torch.randint(-8, 8, (48, 2), generator=torch.Generator().manual_seed(0))
    assert distance(WeightOnly8, packed(48, 96, 96, activation=None), rows) < 1e-2
    for bits in (2, 4):
        for more in ({}, {"bias": None}, {"zero": zero}):
            assert distance(WeightOnly4, packed(48, 64, 32, bits=bits, activation=None, **more), rows) < 1e-2


def test_integers_that_lie_where_a_file_put_them(packed: Make) -> None:
    """Not at a multiple of 16 bytes: the process would end here."""
    layer = packed(32, 32, 32, activation=None)
    room = torch.empty(32 * 32 + 64, dtype=torch.int8)
    begin = -room.data_ptr() % 64 + 24
    held = room[begin : begin + 32 * 32].view(32, 32).copy_(layer.numbers)
    kernel = WeightOnly8(layer._replace(numbers=held))
    assert kernel.integers.data_ptr() % 16 == 0
    assert kernel(torch.randn(128, 32)).shape == (128, 32)


def test_shapes_types_and_what_they_hold(packed: Make) -> None:
    for kernel, bits, size in ((WeightOnly8, 8, 48 * 64), (WeightOnly4, 4, 48 * 64 // 2)):
        layer = kernel(packed(48, 64, 64, bits=bits, activation=None))
        x = torch.randn(2, 3, 64)
        assert layer(x).dtype == torch.float32 and layer(x.bfloat16()).dtype == torch.bfloat16
        assert layer(x).shape == (2, 3, 48) and layer(x[0, 0]).shape == (48,)
        assert max(tensor.nbytes for tensor in layer.buffers()) == size


def test_what_they_refuse(packed: Make) -> None:
    assert WeightOnly8.refusal(packed(16, 32, 32, activation=None), CPU) is None
    assert "inputs must be left in float" in str(WeightOnly8.refusal(packed(8, 8, 8), CPU))
    assert "not on cuda" in str(WeightOnly8.refusal(packed(8, 8, 8, activation=None), torch.device("cuda")))
    assert "one scale per row" in str(WeightOnly8.refusal(packed(8, 8, 4, activation=None), CPU))
    assert WeightOnly4.refusal(packed(16, 64, 32, bits=4, activation=None), CPU) is None
    for kernel, bits in ((WeightOnly8, 8), (WeightOnly4, 4)):
        layer = packed(8, 32, 32, bits=bits, activation=None)
        assert "multiples of 16 (out) and 32 (in), got 8 and 32" in str(kernel.refusal(layer, CPU))
    for layer in (packed(16, 64, 32), packed(16, 64, 16, bits=4)):
        assert "at most 4 bits" in str(WeightOnly4.refusal(layer, CPU))
