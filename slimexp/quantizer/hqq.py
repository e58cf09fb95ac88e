"""HQQ: zero points and scales by half-quadratic splitting, without any data."""

from typing import Any

import torch
from torch import Tensor

from slimexp.quantizer.base import Grid, Quantizer


class Hqq(Quantizer):
    """Least error in a norm that forgives outliers, from the min-max grid on.

    Badri & Shaji 2023, "Half-quadratic quantization of large machine learning models": the error W - W_q is split
    into a sparse part, the shrinkage ``sign(e) max(|e| - |e|^(p-1) / beta, 0)`` (their equation 5), and a rest, of
    which the zero point takes the mean (equation 6). The paper's zero points are real numbers; here they are rounded
    to integers, which a file can hold. A symmetric grid has none, so its scale is fitted instead, by least squares.
    Rounds that would not lower the error per row or group in that norm are not taken.

    Args:
        rounds: Alternations, >= 1.
        power: p of the norm, in (0, 1).
        beta: Weight of the splitting in the first round; it grows by 1 % a round. In units of the weights' scale.
    """

    def __init__(
        self, *, bits: int, group_size: int | None, symmetric: bool = True, rounds: int, power: float, beta: float
    ) -> None:
        super().__init__(bits=bits, group_size=group_size, symmetric=symmetric)
        if rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {rounds}")
        if not 0 < power < 1:
            raise ValueError(f"power must be in (0, 1), got {power}")
        if beta <= 0:
            raise ValueError(f"beta must be > 0, got {beta}")
        self.rounds, self.power, self.beta = rounds, power, beta

    def fitted(self, x: Tensor) -> Grid:
        low, high = self.granularity.split(x).aminmax(dim=-1)
        best = grid = self.scaled(low, high)
        least = self._error(x, best)
        for number in range(self.rounds):
            grid = self._next(x, grid, self.beta * 1.01**number)
            shipped = Grid(grid.scale, None if grid.zero is None else grid.zero.round().to(torch.int8))
            error = self._error(x, shipped)
            best = shipped.where(error < least, best)
            least = torch.minimum(error, least)
        return best

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"rounds": self.rounds, "power": self.power, "beta": self.beta}

    def _next(self, x: Tensor, grid: Grid, beta: float) -> Grid:
        """One alternation; zero points are real numbers throughout."""
        groups = self.granularity.split(x).float() / grid.scale.unsqueeze(-1)
        steps = self.granularity.split(self.integers(x, grid)).float()
        error = groups - (steps if grid.zero is None else steps - grid.zero.unsqueeze(-1))
        rest = groups - error.sign() * (error.abs() - error.abs().pow(self.power - 1) / beta).clamp(min=0)
        if grid.zero is not None:
            return Grid(grid.scale, (steps - rest).mean(-1).clamp(*self.limits))
        norm = steps.square().sum(-1)
        fitted = self._exact(((steps * rest).sum(-1) / norm * grid.scale).abs())
        return Grid(torch.where(norm > 0, fitted * grid.scale.sign(), grid.scale))

    def _error(self, x: Tensor, grid: Grid) -> Tensor:
        """Per scale."""
        return self.granularity.split(self.round(x, grid) - x).float().abs().pow(self.power).sum(-1)
