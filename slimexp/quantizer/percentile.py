"""Percentile: the grid spans all but the outermost entries of a row or group."""

from typing import Any

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid


class Percentile(Quantizer):
    """Min-max without the outermost entries, which are clipped.

    Args:
        percentile: Percentage of the entries that lie within the grid, in (50, 100]. Symmetric: percentile of absolute
            values. Affine: equally many entries are clipped at either end.
    """

    def __init__(self, *, bits: int, group_size: int | str | None, symmetric: bool = True, percentile: float) -> None:
        super().__init__(bits=bits, group_size=group_size, symmetric=symmetric)
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile must be in (50, 100], got {percentile}")
        self.percentile = percentile

    def fitted(self, x: Tensor) -> Grid:
        groups = self.granularity.split(x)
        if self.symmetric:
            largest = _entry(groups.abs().sort(-1).values, self.percentile / 100)
            low, high = groups.aminmax(dim=-1)
            return self.scaled(torch.maximum(low, -largest), torch.minimum(high, largest))
        groups = groups.sort(-1).values
        outside = (1 - self.percentile / 100) / 2
        return self.scaled(_entry(groups, outside), _entry(groups, 1 - outside))

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"percentile": self.percentile}


def _entry(ascending: Tensor, share: float) -> Tensor:
    """The entry below which ``share`` of the others lie, along the last axis: [..., n] -> [...]."""
    return ascending[..., round(share * (ascending.shape[-1] - 1))]
