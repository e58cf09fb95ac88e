"""HQQ: grids that minimise an l_p norm, p < 1, of the rounding error, by half-quadratic splitting and without data."""

from typing import Any

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid


class Hqq(Quantizer):
    """Scales that minimize the l_p norm of the rounding errors, from min-max on; with p < 1 outliers count little.

    Badri & Shaji 2023, "Half-quadratic quantization of large machine learning models", equations 4 to 8. In every
    iteration the errors ``e`` are split into outliers, ``sign(e) max(|e| - |e|^(p-1) / penalty, 0)``, and a rest whose
    squares are minimized; ``penalty`` grows from iteration to iteration. The paper updates a floating-point zero point
    and fixes the scale. Grids here have integer zero points, on which pruned weights stay zero and which kernels read;
    rounded to an integer, the paper's zero point is that of min-max again. So here the scale is updated, to the least
    squares of the rest; errors are measured in root mean squares of the weights that share a scale, so that one penalty
    suits all; and of all iterations the one of least norm is chosen.

    Args:
        turns: Number of iterations, >= 1.
        norm: p, in (0, 1].
        penalty: Penalty of the first iteration, > 0; the larger, the smaller the errors that count as outliers: at 1
            none does, and the scale is that of least squares; far above 100 all do, and it stays that of min-max.
        growth: Factor of the penalty from iteration to iteration, >= 1.
    """

    def __init__(
        self,
        *,
        bits: int,
        group_size: int | str | None,
        symmetric: bool = True,
        turns: int,
        norm: float,
        penalty: float,
        growth: float,
    ) -> None:
        super().__init__(bits=bits, group_size=group_size, symmetric=symmetric)
        if turns < 1:
            raise ValueError(f"turns must be >= 1, got {turns}")
        if not 0 < norm <= 1:
            raise ValueError(f"norm must be in (0, 1], got {norm}")
        if penalty <= 0 or growth < 1:
            raise ValueError(f"penalty must be > 0 and growth >= 1, got {penalty} and {growth}")
        self.turns = turns
        self.norm = norm
        self.penalty = penalty
        self.growth = growth

    def fitted(self, x: Tensor) -> Grid:
        groups = self.granularity.split(x).float()
        low, high = groups.aminmax(dim=-1)
        size = groups.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(groups.dtype).tiny)
        best = grid = self.scaled(low, high)
        least, exact = torch.full_like(grid.scale, torch.inf), grid.scale
        for turn in range(self.turns + 1):
            cost, _, _ = self._fit(x, grid)
            best, least = grid.where(cost < least, best), torch.minimum(cost, least)
            _, numbers, errors = self._fit(x, Grid(exact, grid.zero))
            unit = exact.unsqueeze(-1) / size  # a step in units of the root mean square
            rest = numbers + errors - self._outliers(errors * unit, turn) / unit
            moved = exact * (rest * numbers).sum(-1) / numbers.square().sum(-1).clamp(min=1)
            exact = torch.where(moved * exact > 0, moved, exact)  # the sign must not change
            grid = Grid(self._exact(exact.abs()) * exact.sign(), grid.zero)
        return best

    def arguments(self) -> dict[str, Any]:
        settings = {"turns": self.turns, "norm": self.norm, "penalty": self.penalty, "growth": self.growth}
        return super().arguments() | settings

    def _fit(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Norm of the errors per scale, and integers and errors in steps of the scale, [..., groups, in / groups]."""
        scale = grid.scale.unsqueeze(-1)
        numbers = self.granularity.split(self._steps(x, grid))
        if grid.zero is not None:
            numbers = numbers - grid.zero.unsqueeze(-1).float()
        errors = self.granularity.split(x).float() / scale - numbers
        return (errors * scale).abs().pow(self.norm).sum(-1), numbers, errors

    def _outliers(self, errors: Tensor, turn: int) -> Tensor:
        """Shrunk errors, same shape: ``sign(e) max(|e| - |e|^(p-1) / penalty, 0)``."""
        size = errors.abs()
        threshold = (size + 1e-8).pow(self.norm - 1) / (self.penalty * self.growth**turn)
        return errors.sign() * (size - threshold).clamp(min=0)
