"""GPTQ: rounding to a grid, where the weights still to be rounded make up for those that were."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from slimexp.kernel.cuda_graph import Recorded
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid
from slimexp.rounding.base import Rounding
from slimexp.weight.optimal_brain_surgeon import fix_strip, gram, inverse_factor, quantize_columns


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
        new, alive, hessian = weight.float() * alive, alive.bool(), statistic
        columns = new.shape[1]
        size, fits = quantizer.granularity.columns(columns), quantizer.on_columns()
        group_of = torch.arange(columns, device=new.device) // size
        grids: dict[int, Grid] = {}
        if self.act_order:
            grids = {
                group: fits.fitted(new[:, group * size : (group + 1) * size]) for group in range(-(-columns // size))
            }
            order = statistic.diagonal().argsort(descending=True, stable=True)
            new, alive, hessian, group_of = new[:, order], alive[:, order], statistic[order][:, order], group_of[order]
        factor = inverse_factor(hessian, dampening=self.dampening, owner="GPTQ", option="rounding.dampening")
        # A grid must see its group with every column before it made up for, so that strips end where groups do.
        strip = self.strip if self.act_order or size >= columns else _divisor(size, self.strip)
        fix, groups = Recorded(partial(fix_strip, partial(_on_grid, fits))), group_of.tolist()
        for begin in range(0, columns, strip):
            end = min(begin + strip, columns)
            if (group := groups[begin]) not in grids:
                here = slice(group * size, (group + 1) * size)
                grids[group] = fits.fitted(new[:, here] * alive[:, here])
            chosen = [grids[group] for group in groups[begin:end]]
            zeros = [grid.zero.flatten() for grid in chosen if grid.zero is not None]
            scales = torch.stack([grid.scale.flatten() for grid in chosen])
            of_columns = (alive[:, begin:end].T, scales, *([torch.stack(zeros)] if zeros else []))
            quantize_columns(new, begin, end, factor, fix, *of_columns)
        new = new[:, order.argsort()] if self.act_order else new
        return new, _side_by_side([grids[group] for group in sorted(grids)])


def _on_grid(fits: Quantizer, column: Tensor, alive: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """The points of a grid nearest to a column, [out]; ``scale`` and ``zero`` are [out], or [1] for all rows."""
    grid = Grid(scale.unsqueeze(1), None if zero is None else zero.unsqueeze(1))
    return fits.round(column.unsqueeze(1), grid).squeeze(1) * alive


def _side_by_side(grids: Sequence[Grid]) -> Grid:
    """Grids of groups of columns, [out, 1] each, as one [out, groups]."""
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    return Grid(torch.cat([grid.scale for grid in grids], -1), torch.cat(zeros, -1) if zeros else None)


def _divisor(size: int, most: int) -> int:
    """The largest divisor of ``size`` that is at most ``most``."""
    return next(width for width in range(min(size, most), 0, -1) if size % width == 0)
