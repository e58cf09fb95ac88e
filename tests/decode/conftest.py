"""Layers whose weights are integers, made from floats."""

from collections.abc import Callable

import pytest
from torch import nn

from slimexp.kernel.base import Packed
from slimexp.quantizer.minmax import MinMax


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
