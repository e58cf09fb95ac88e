"""Layers of random integers, and how far a kernel is from what they mean."""

from collections.abc import Callable

import pytest
import torch

from slimexp.kernel.base import Kernel, Packed, rounded_input


@pytest.fixture
def packed() -> Callable[..., Packed]:
    def make(out: int, size: int, group: int, *, bits: int = 8, activation: object = "token", **more: object) -> Packed:
        chance = torch.Generator().manual_seed(out + size)
        half = 2 ** (bits - 1)
        integers = torch.randint(-half, half, (out, size), generator=chance, dtype=torch.int8)
        scale = torch.rand(out, size // group, generator=chance) * 0.01 + 0.001
        fields = {"zero": None, "bias": torch.randn(out, generator=chance)} | more
        return Packed(integers, scale, bits=bits, activation=activation, **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture
def distance() -> Callable[[type[Kernel], Packed, int], float]:
    """Relative to what the packed layer means, in float64."""

    def measure(kernel: type[Kernel], layer: Packed, rows: int) -> float:
        x = torch.randn(rows, layer.numbers.shape[1], generator=torch.Generator().manual_seed(rows))
        x = x.to(layer.numbers.device)
        bias = 0 if layer.bias is None else layer.bias.double()
        exact = rounded_input(x, layer.activation, layer.numbers.dtype).double() @ layer.weight().double().T + bias
        return float((kernel(layer)(x) - exact).norm() / exact.norm())

    return measure
