"""GPTQ: rounding to a grid, where the weights still to be rounded make up for those that were."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid
from slimexp.rounding.base import Rounding
from slimexp.weight.optimal_brain_surgeon import gram, inverse_factor, quantize_columns


class GPTQ(Rounding):
    """Round a weight so that the layer's outputs change least, in squares over the tokens of the calibration.

    Frantar et al. 2022, "GPTQ: accurate post-training quantization for generative pre-trained transformers",
    algorithm 1. Columns are rounded from left to right, and the rest of the row moves as in SparseGPT, by the same
    solver. The grid of a group is that of its weights as they are when it is reached. With ``act_order`` columns go by
    falling input energy instead; a group's columns are then apart from each other, so that all grids are those of the
    weight before (static groups): no order needs to be stored, and no kernel needs to know one.

    Args:
        rows: Number of rows of training text to calibrate on.
        dampening: Added to the diagonal of the Hessian, as a share of its mean, > 0.
        act_order: Whether columns with the strongest inputs go first.
    """

    strip = 128  # columns between two updates of all that follow: a matter of speed alone

    def __init__(self, *, rows: int, dampening: float, act_order: bool) -> None:
        super().__init__(rows=rows)
        if dampening <= 0:
            raise ValueError(f"rounding.dampening must be > 0, got {dampening}")
        self.dampening = dampening
        self.act_order = act_order

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        """What one row of text adds to the Hessian, [in, in]."""
        return gram(observed)

    @torch.no_grad()
    def round(self, weight: Tensor, alive: Tensor, statistic: Tensor, quantizer: Quantizer) -> tuple[Tensor, Grid]:
        before, alive = weight.float() * alive, alive.bool()
        order = torch.arange(before.shape[1], device=before.device)
        if self.act_order:
            order = statistic.diagonal().argsort(descending=True, stable=True)
        new, alive, hessian = before[:, order], alive[:, order], statistic[order][:, order]
        factor = inverse_factor(hessian, dampening=self.dampening, owner="GPTQ", option="rounding.dampening")
        size, fits = quantizer.granularity.columns(new.shape[1]), quantizer.on_columns()
        grids: dict[int, Grid] = {}

        def value(j: int, column: Tensor) -> Tensor:
            group = int(places[j]) // size
            if group not in grids:
                here = slice(group * size, (group + 1) * size)
                grids[group] = fits.fitted(before[:, here] if self.act_order else new[:, here] * alive[:, here])
            rounded[:, j] = fits.round(column.unsqueeze(1), grids[group]).squeeze(1) * alive[:, j]
            return rounded[:, j]

        rounded, places = torch.empty_like(new), order.tolist()
        # A grid must see its group with every column before it made up for, so that strips end where groups do.
        strip = self.strip if self.act_order or size >= new.shape[1] else _divisor(size, self.strip)
        for begin in range(0, new.shape[1], strip):
            quantize_columns(new, begin, min(begin + strip, new.shape[1]), factor, value)
        return rounded[:, order.argsort()], _side_by_side([grids[group] for group in sorted(grids)])


def _side_by_side(grids: Sequence[Grid]) -> Grid:
    """Grids of groups of columns, [out, 1] each, as one [out, groups]."""
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    return Grid(torch.cat([grid.scale for grid in grids], -1), torch.cat(zeros, -1) if zeros else None)


def _divisor(size: int, most: int) -> int:
    """The largest divisor of ``size`` that is at most ``most``."""
    return next(width for width in range(min(size, most), 0, -1) if size % width == 0)
