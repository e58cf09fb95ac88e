"""Base class of smoothings: a scale per channel, applied before rounding, under which the model computes the same."""

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
        scaling: The tensors that a scaling would change, before and after the input.
        weights: Name of the layer -> its weight in float32, [out, in], zero where masked.
        statistic: What ``Smoothing.observe`` of all rows of their input came to.
        quantizers: Name of the layer -> the quantizer of its weight, not frozen.
    """

    scaling: Scaling
    weights: Mapping[str, Tensor]
    statistic: Tensor
    quantizers: Mapping[str, Quantizer]


class Smoothing(ABC):
    """Chooses by how much channels are scaled.

    The technique calls ``observe`` per row of training text and layer, adds up with ``merge`` what that returns, and
    hands the sum to ``scales``. So a smoothing holds no state and knows no corpora.

    Args:
        rows: Number of rows of training text to calibrate on, >= 1.

    Attributes:
        activations: Whether it is made for quantized activations.
        clip: Whether the technique narrows the ranges of weights by ``clipped`` too.
    """

    activations: bool
    clip = False

    def __init__(self, *, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"smoothing.rows must be >= 1, got {rows}")
        self.rows = rows

    @abstractmethod
    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        """What one row of text adds to the layer's statistic.

        Args:
            weight: [out, in], without gradient.
            observed: The layer's input at every token of the row, [N, in].

        Returns:
            A float32 tensor of the same shape for every row.
        """

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """The statistic of rows together: the sum, written to ``total``, unless a subclass takes another."""
        return total.add_(part)

    @abstractmethod
    def scales(self, readers: Readers) -> Tensor:
        """Positive scales, one per output channel of ``readers.scaling.before``."""

    def clipped(self, weight: Tensor, statistic: Tensor, columns: Tensor, quantizer: Quantizer) -> Tensor:
        """The weight with the ranges that its grid is to be fitted to, [out, in]; as it is where there is no search.

        Args:
            weight: [out, in] in float32, after the scaling.
            statistic: What ``observe`` of all rows of the layer's input came to, before the scaling.
            columns: What the scaling divided each input channel by, [in]; 1 where it left them alone.
            quantizer: The quantizer of this weight, not frozen.
        """
        return weight


def usable(scales: Tensor, where: Tensor) -> Tensor:
    """``scales`` at the true entries of ``where``, within [1e-5, 1e5]; 1 elsewhere and where they are not finite."""
    return torch.where(where & scales.isfinite(), scales, 1.0).clamp(1e-5, 1e5)
