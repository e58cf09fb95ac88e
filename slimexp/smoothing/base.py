"""Scaling channels before rounding, the model staying what it is: SmoothQuant and AWQ."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slimexp.model.scaling import Scaling
from slimexp.quantizer.base import Quantizer
from slimexp.weight.optimal_brain_surgeon import gram


@dataclass(frozen=True)
class Readers:
    """Layers that read one input whose channels can be scaled.

    Attributes:
        scaling: What would be scaled.
        weights: Of the layers, float32 [out, in], zero where masked.
        statistic: What was observed of their input.
        quantizers: Of these weights, not frozen.
    """

    scaling: Scaling
    weights: Mapping[str, Tensor]
    statistic: Tensor
    quantizers: Mapping[str, Quantizer]


class Smoothing(ABC):
    """Says by how much channels are scaled, given what was seen of them.

    Args:
        rows: Training rows to read.

    Attributes:
        activations: Whether it is made for quantized activations.
        clip: Whether ranges of weights are searched for too.
    """

    activations: bool
    clip = False

    def __init__(self, *, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"smoothing.rows must be >= 1, got {rows}")
        self.rows = rows

    @abstractmethod
    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        """What one row of text shows of a layer's inputs, [N, in]."""

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """What two rows show together."""
        return total.add_(part)

    @abstractmethod
    def scales(self, readers: Readers) -> Tensor:
        """Positive scales, one per output channel of ``readers.scaling.before``."""


class SmoothQuant(Smoothing):
    """Move part of the activations' outliers into the weights.

    Xiao et al. 2023, "SmoothQuant: accurate and efficient post-training quantization for large language models",
    equation 4: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``. Besides norms, the linear layers before attention's and
    the feed-forward's second layer take the inverse, where they can.

    Args:
        rows: Training rows to read.
        alpha: In [0, 1]; the more, the more is moved into the weights.
    """

    activations = True

    def __init__(self, *, rows: int, alpha: float) -> None:
        super().__init__(rows=rows)
        if not 0 <= alpha <= 1:
            raise ValueError(f"smoothing.alpha must be in [0, 1], got {alpha}")
        self.alpha = alpha

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        return observed.float().abs().amax(0)

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        return torch.maximum(total, part)

    def scales(self, readers: Readers) -> Tensor:
        largest = torch.stack([weight.abs().amax(0) for weight in readers.weights.values()]).amax(0)
        inputs, largest = readers.scaling.shared(readers.statistic), readers.scaling.shared(largest)
        scales = inputs**self.alpha / largest ** (1 - self.alpha)
        return _usable(scales, (inputs > 0) & (largest > 0))


class AWQ(Smoothing):
    """Scale channels up whose inputs are strong, so that their weights are rounded more finely.

    Lin et al. 2024, "AWQ: activation-aware weight quantization for on-device LLM compression and acceleration",
    equations 4 and 5: ``s = s_X^beta``, beta by grid search over [0, 1] for the least error of the outputs, then
    ranges of the weights clipped for the same end, per output channel and group. Errors are taken from the inputs'
    Gram matrix, which one pass collects, so that no inputs are kept; ``s_X`` is the root mean square of a channel where
    the paper has the mean magnitude, and errors are those of the layers, where it has attention as a whole.

    Args:
        rows: Training rows to read.
        points: Exponents that are tried, 0 apart.
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
        woken = strength > 0
        best = torch.ones_like(strength)
        least = _error(best, readers)
        for k in range(1, self.points + 1):
            scales = _usable(strength ** (k / self.points), woken)
            scales = scales / (scales.max() * scales.min()).sqrt()
            error = _error(scales, readers)
            if error < least:
                best, least = scales, error
        return best


def _error(scales: Tensor, readers: Readers) -> float:
    """Squared error of the layers' outputs under ``scales``; the statistic is their inputs' Gram matrix."""
    columns = readers.scaling.spread(scales)
    errors = []
    for name, weight in readers.weights.items():
        scaled, quantizer = weight * columns, readers.quantizers[name]
        change = quantizer.round(scaled, quantizer.fitted(scaled)) / columns - weight
        errors.append(((change @ readers.statistic) * change).sum())
    return float(torch.stack(errors).sum())


_SHRINKS = tuple(1 - step / 20 for step in range(11))  # Lin et al.'s grid: 20 points, down to half


def clipped(weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Tensor:
    """The weight with every group's range such that its share of the layer's outputs errs least, [out, in].

    Args:
        weight: [out, in].
        hessian: Gram matrix of the inputs, [in, in].
        quantizer: Of this weight, not frozen.
    """
    size, fits = quantizer.granularity.columns(weight.shape[1]), quantizer.on_columns()
    parts = []
    for begin in range(0, weight.shape[1], size):
        here = slice(begin, begin + size)
        parts.append(_clipped(weight[:, here], hessian[here, here], fits))
    return torch.cat(parts, 1)


def _clipped(group: Tensor, hessian: Tensor, fits: Quantizer) -> Tensor:
    shared = (0, 1) if fits.granularity.per_tensor else 1  # what has one range
    largest = group.abs().amax(shared, keepdim=True)
    best, least = group, torch.full_like(largest, torch.inf)
    for shrink in _SHRINKS:
        narrow = group.clamp(-shrink * largest, shrink * largest)
        change = fits.round(group, fits.fitted(narrow)) - group
        error = ((change @ hessian) * change).sum(shared, keepdim=True)
        best = torch.where(error < least, narrow, best)
        least = torch.minimum(error, least)
    return best


def _usable(scales: Tensor, where: Tensor) -> Tensor:
    """``scales`` where they make sense, kept within what a float holds well; 1 elsewhere."""
    return torch.where(where & scales.isfinite(), scales, 1.0).clamp(1e-5, 1e5)
