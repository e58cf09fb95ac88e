"""Layers rounded to nearest on the grid that is trained and shipped, where only time or the arithmetic is looked at."""

import torch

from slimexp.kernel.base import Packed
from slimexp.quantizer.minmax import MinMax


def rounded(layer: torch.nn.Linear, bits: int, group: int | None) -> Packed:
    """A layer, symmetric: one scale per row, or per ``group`` of its weights."""
    weight = layer.weight.detach().float()
    quantizer = MinMax(bits=bits, group_size=group)
    grid = quantizer.fitted(weight)
    bias = None if layer.bias is None else layer.bias.detach().float()
    return Packed(quantizer.integers(weight, grid), grid.scale, grid.zero, bits, bias, None)
