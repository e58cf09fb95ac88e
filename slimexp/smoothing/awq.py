"""AWQ: channels with strong inputs are scaled up, so that their weights are rounded more finely."""

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.smoothing.base import Readers, Smoothing, usable
from slimexp.weight.optimal_brain_surgeon import gram

SHRINKS = tuple(1 - step / 20 for step in range(11))  # Lin et al.'s grid: 20 points, down to half


class AWQ(Smoothing):
    """Scale channels up whose inputs are strong, so that their weights are rounded more finely.

    Lin et al. 2024, "AWQ: activation-aware weight quantization for on-device LLM compression and acceleration",
    equations 4 and 5: ``s = s_X^beta``, beta by grid search over [0, 1] for the least error of the outputs, then
    ranges of the weights clipped for the same end, per output channel and group. Errors are taken from the inputs'
    Gram matrix, which one pass collects, so that no inputs are kept; ``s_X`` is the root mean square of a channel where
    the paper has the mean magnitude, and errors are those of the layers, where it has attention as a whole.

    Args:
        rows: Number of rows of training text to calibrate on.
        points: Number of exponents that are tried besides 0.
        clip: Whether to search for ranges; the smallest that is tried keeps half.
    """

    activations = False

    def __init__(self, *, rows: int, points: int, clip: bool) -> None:
        super().__init__(rows=rows)
        if points < 1:
            raise ValueError(f"smoothing.points must be >= 1, got {points}")
        self.points = points
        self.clip = clip

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        return gram(observed)

    def scales(self, readers: Readers) -> Tensor:
        strength = readers.scaling.shared(readers.statistic.diagonal()).sqrt()
        active = strength > 0
        best = torch.ones_like(strength)
        least = _error(best, readers)
        for k in range(1, self.points + 1):
            scales = usable(strength ** (k / self.points), active)
            scales = scales / (scales.max() * scales.min()).sqrt()
            error = _error(scales, readers)
            if error < least:
                best, least = scales, error
        return best

    def clipped(self, weight: Tensor, statistic: Tensor, columns: Tensor, quantizer: Quantizer) -> Tensor:
        """The weight with every group's range such that its share of the layer's outputs errs least, [out, in]."""
        hessian = statistic / columns / columns.unsqueeze(1)  # the Gram matrix of the inputs as they are scaled
        size, fits = quantizer.granularity.columns(weight.shape[1]), quantizer.on_columns()
        parts = []
        for begin in range(0, weight.shape[1], size):
            here = slice(begin, begin + size)
            parts.append(_clipped(weight[:, here], hessian[here, here], fits))
        return torch.cat(parts, 1)


def _error(scales: Tensor, readers: Readers) -> float:
    """Squared error of the layers' outputs under ``scales``; the statistic is their inputs' Gram matrix."""
    columns = readers.scaling.spread(scales)
    errors = []
    for name, weight in readers.weights.items():
        scaled, quantizer = weight * columns, readers.quantizers[name]
        change = quantizer.round(scaled, quantizer.fitted(scaled)) / columns - weight
        errors.append(((change @ readers.statistic) * change).sum())
    return float(torch.stack(errors).sum())


def _clipped(group: Tensor, hessian: Tensor, fits: Quantizer) -> Tensor:
    """Columns that share scales, [out, size], with the ranges of least error; ``hessian`` is [size, size]."""
    shared = (0, 1) if fits.granularity.per_tensor else 1  # axes that have one range
    largest = group.abs().amax(shared, keepdim=True)
    best, least = group, torch.full_like(largest, torch.inf)
    for shrink in SHRINKS:
        narrow = group.clamp(-shrink * largest, shrink * largest)
        change = fits.round(group, fits.fitted(narrow)) - group
        error = ((change @ hessian) * change).sum(shared, keepdim=True)
        best = torch.where(error < least, narrow, best)
        least = torch.minimum(error, least)
    return best
