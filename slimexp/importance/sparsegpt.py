"""SparseGPT: the weights that stay make up for those that go."""

from collections.abc import Iterable

import torch
from torch import Tensor

from slimexp.importance.base import Choose, Compensating, Strip
from slimexp.weight.optimal_brain_surgeon import gram, inverse_factor, quantize_columns


class SparseGPT(Compensating):
    """Zero weights so that the layer's outputs change least, in squares over the tokens of the calibration.

    Frantar & Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one-shot", algorithm 1.
    ``H = sum_x x x^T`` over the layer's inputs. Columns are settled from left to right: where a weight of column j
    goes, those to its right in the row move by ``-w_j [H_j^-1]_0 / [H_j^-1]_00``, where ``H_j`` is H without the
    columns before j. Which weights go is decided strip by strip, by ``w_j^2 / [H_j^-1]_00`` (equation 5) of the
    weights as they are by then.

    Weights of a column that no token woke go first; the paper's code zeroes them all, here some may have to stay.

    Args:
        rows: Training rows to read.
        dampening: Added to the diagonal of H, as a share of its mean, > 0.
        strip: Columns to a strip, >= 1; n:m decides group by group instead.
    """

    observes = "input"

    def __init__(self, *, rows: int, dampening: float, strip: int) -> None:
        super().__init__(rows=rows)
        if dampening <= 0:
            raise ValueError(f"dampening must be > 0, got {dampening}")
        if strip < 1:
            raise ValueError(f"strip must be >= 1 column, got {strip}")
        self.dampening = dampening
        self.strip = strip

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        return gram(observed)

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        assert statistic is not None
        return _cost(weight.detach().float(), _roots(self._factor(statistic), statistic))

    def prune(
        self, weight: Tensor, alive: Tensor, statistic: Tensor, strips: Iterable[Strip], choose: Choose
    ) -> tuple[Tensor, Tensor]:
        factor = self._factor(statistic)
        roots = _roots(factor, statistic)
        new, kept = weight.detach().float() * alive, alive.clone()
        for begin, end, share in strips:
            kept[:, begin:end] = choose(_cost(new[:, begin:end], roots[begin:end]), alive[:, begin:end], share)
            quantize_columns(new, begin, end, factor, lambda j, column: column.masked_fill(~kept[:, j], 0))
        return new * kept, kept

    def _factor(self, statistic: Tensor) -> Tensor:
        return inverse_factor(statistic, dampening=self.dampening, owner="SparseGPT", option="importance.dampening")


def _roots(factor: Tensor, statistic: Tensor) -> Tensor:
    """Root of ``[H_j^-1]_00`` per column; infinite where no token woke it, whose weights cost nothing."""
    return factor.diagonal().masked_fill(statistic.diagonal() == 0, torch.inf)


def _cost(weight: Tensor, root: Tensor) -> Tensor:
    """What the squared error of the outputs grows by if a weight goes and those to its right make up for it."""
    return (weight / root).square()
