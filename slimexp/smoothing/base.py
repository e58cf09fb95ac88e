"""Scaling channels before rounding, the model staying what it is: SmoothQuant and AWQ."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slimexp.model.scaling import Scaling
from slimexp.quantizer.base import Quantizer


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


def usable(scales: Tensor, where: Tensor) -> Tensor:
    """``scales`` where they make sense, kept within what a float holds well; 1 elsewhere."""
    return torch.where(where & scales.isfinite(), scales, 1.0).clamp(1e-5, 1e5)
