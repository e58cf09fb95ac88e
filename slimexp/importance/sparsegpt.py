"""SparseGPT: the weights that stay are updated to compensate for those that are pruned."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from slimexp.importance.base import Choose, Compensating, Strip
from slimexp.kernel.cuda_graph import Recorded
from slimexp.weight.optimal_brain_surgeon import fix_strip, gram, inverse_factor, quantize_columns


class SparseGPT(Compensating):
    """Prune weights so that the squared error of the layer's outputs on the calibration text is least.

    Frantar & Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one-shot", algorithm 1.
    ``H = sum_x x x^T`` over the layer's inputs. Columns are processed from left to right: where a weight of column j is
    pruned, those to its right in the row change by ``-w_j [H_j^-1]_0 / [H_j^-1]_00``, where ``H_j`` is H without the
    columns before j. Which weights are pruned is decided strip by strip, by ``w_j^2 / [H_j^-1]_00`` (equation 5) of the
    updated weights.

    Weights of an input channel that is always 0 are pruned first; the paper's code prunes them all, here some may have
    to stay.

    Args:
        rows: Number of training rows to calibrate on.
        dampening: Share of the mean of the diagonal of H that is added to it, > 0.
        strip: Number of columns of a strip, >= 1; n:m decides group by group instead.
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
        return _saliency(weight.detach().float(), _roots(self._factor(statistic), statistic))

    def prune(
        self, weight: Tensor, alive: Tensor, statistic: Tensor, strips: Iterable[Strip], choose: Choose
    ) -> tuple[Tensor, Tensor]:
        factor = self._factor(statistic)
        roots = _roots(factor, statistic)
        new, mask = weight.detach().float() * alive, alive.clone()
        fix = Recorded(partial(fix_strip, torch.mul))
        for begin, end, share in strips:
            mask[:, begin:end] = choose(_saliency(new[:, begin:end], roots[begin:end]), alive[:, begin:end], share)
            quantize_columns(new, begin, end, factor, fix, mask[:, begin:end].T)
        return new * mask, mask

    def _factor(self, statistic: Tensor) -> Tensor:
        return inverse_factor(statistic, dampening=self.dampening, owner="SparseGPT", option="importance.dampening")


def _roots(factor: Tensor, statistic: Tensor) -> Tensor:
    """Root of ``[H_j^-1]_00``, [in]; infinite for input channels that are always 0, whose weights have no effect."""
    return factor.diagonal().masked_fill(statistic.diagonal() == 0, torch.inf)


def _saliency(weight: Tensor, root: Tensor) -> Tensor:
    """Increase of the squared error of the outputs, [out, n], if a weight is pruned and those to its right adapt."""
    return (weight / root).square()
