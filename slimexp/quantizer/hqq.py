"""HQQ: the scale at which few weights err, by half-quadratic splitting and without data."""

from typing import Any

import torch
from torch import Tensor

from slimexp.quantizer.base import Grid, Quantizer


class Hqq(Quantizer):
    """From min-max on, scales move until the l_p norm of the errors is least; with p < 1 large errors count little.

    Badri & Shaji 2023, "Half-quadratic quantization of large machine learning models", equations 4 to 8. In turns, the
    errors ``e`` are split into outliers, ``sign(e) max(|e| - |e|^(p-1) / penalty, 0)``, and a rest that is minimized in
    squares; ``penalty`` grows from turn to turn. The paper moves a floating-point zero point and keeps the scale. Grids
    here have integer zero points, on which pruned weights stay zero and which kernels read; rounded to an integer, the
    paper's zero point is that of min-max again. So it is the scale that moves, to the least squares of the rest; errors
    are counted in root mean squares of the weights that share a scale, so that one penalty suits all; and of all turns
    the one with the least norm is taken.

    Args:
        turns: How often, >= 1.
        norm: p, in (0, 1].
        penalty: Of the first turn, > 0; the larger, the smaller an error that is an outlier: at 1 none is, and the
            scale is that of least squares; far above 100 all are, and it stays that of min-max.
        growth: Factor from turn to turn, >= 1.
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
            unit = exact.unsqueeze(-1) / size  # a step, in root mean squares
            rest = numbers + errors - self._outliers(errors * unit, turn) / unit
            moved = exact * (rest * numbers).sum(-1) / numbers.square().sum(-1).clamp(min=1)
            exact = torch.where(moved * exact > 0, moved, exact)  # of the sign that it had
            grid = Grid(self._exact(exact.abs()) * exact.sign(), grid.zero)
        return best

    def arguments(self) -> dict[str, Any]:
        own = {"turns": self.turns, "norm": self.norm, "penalty": self.penalty, "growth": self.growth}
        return super().arguments() | own

    def _fit(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Norm of the errors per scale, and what scales multiply and miss in steps, [..., groups, in / groups]."""
        scale = grid.scale.unsqueeze(-1)
        numbers = self.granularity.split(self._steps(x, grid))
        if grid.zero is not None:
            numbers = numbers - grid.zero.unsqueeze(-1).float()
        errors = self.granularity.split(x).float() / scale - numbers
        return (errors * scale).abs().pow(self.norm).sum(-1), numbers, errors

    def _outliers(self, errors: Tensor, turn: int) -> Tensor:
        size = errors.abs()
        threshold = (size + 1e-8).pow(self.norm - 1) / (self.penalty * self.growth**turn)
        return errors.sign() * (size - threshold).clamp(min=0)
