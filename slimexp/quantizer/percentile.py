"""Percentile: the grid reaches over all but the outermost entries of a row or group."""

from typing import Any

import torch
from torch import Tensor

from slimexp.quantizer.base import Grid, Quantizer


class Percentile(Quantizer):
    """Min-max without the outermost entries, which are clipped.

    Args:
        percentile: Share of the entries, in percent, that lie within the grid, in (50, 100]. Symmetric: of absolute
            values. Affine: as many stay out at either end.
    """

    def __init__(self, *, bits: int, group_size: int | str | None, symmetric: bool = True, percentile: float) -> None:
        super().__init__(bits=bits, group_size=group_size, symmetric=symmetric)
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile must be in (50, 100], got {percentile}")
        self.percentile = percentile

    def fitted(self, x: Tensor) -> Grid:
        groups = self.granularity.split(x)
        if self.symmetric:
            reach = _entry(groups.abs().sort(-1).values, self.percentile / 100)
            low, high = groups.aminmax(dim=-1)
            return self.scaled(torch.maximum(low, -reach), torch.minimum(high, reach))
        groups = groups.sort(-1).values
        outside = (1 - self.percentile / 100) / 2
        return self.scaled(_entry(groups, outside), _entry(groups, 1 - outside))

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"percentile": self.percentile}


def _entry(ascending: Tensor, share: float) -> Tensor:
    """The entry below which ``share`` of the others lie, along the last axis."""
    return ascending[..., round(share * (ascending.shape[-1] - 1))]
