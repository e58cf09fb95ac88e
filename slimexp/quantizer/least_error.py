"""Least squared error: a search for the range of smallest rounding and clipping errors."""

from typing import Any

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid


class LeastError(Quantizer):
    """Min-max times that one of ``candidates`` ratios whose squared error is least, per row or group.

    Args:
        candidates: Number of ratios tried, evenly spaced from 1 down, >= 1; each costs a rounding of all entries.
        smallest: The smallest ratio, in (0, 1].
    """

    def __init__(
        self, *, bits: int, group_size: int | str | None, symmetric: bool = True, candidates: int, smallest: float
    ) -> None:
        super().__init__(bits=bits, group_size=group_size, symmetric=symmetric)
        if candidates < 1:
            raise ValueError(f"candidates must be >= 1, got {candidates}")
        if not 0 < smallest <= 1:
            raise ValueError(f"smallest must be in (0, 1], got {smallest}")
        self.candidates = candidates
        self.smallest = smallest

    def fitted(self, x: Tensor) -> Grid:
        low, high = self.granularity.split(x).aminmax(dim=-1)
        best = self.scaled(low, high)
        least = self._error(x, best)
        for ratio in torch.linspace(1, self.smallest, self.candidates).tolist()[1:]:
            grid = self.scaled(ratio * low, ratio * high)
            error = self._error(x, grid)
            best = grid.where(error < least, best)
            least = torch.minimum(error, least)
        return best

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"candidates": self.candidates, "smallest": self.smallest}

    def _error(self, x: Tensor, grid: Grid) -> Tensor:
        """Squared error per scale."""
        return self.granularity.split(self.round(x, grid) - x).float().square().sum(-1)
