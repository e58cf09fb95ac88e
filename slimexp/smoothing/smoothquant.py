"""SmoothQuant: outliers of activations move into the weights."""

import torch
from torch import Tensor

from slimexp.smoothing.base import Readers, Smoothing, usable


class SmoothQuant(Smoothing):
    """Move part of the activations' outliers into the weights.

    Xiao et al. 2023, "SmoothQuant: accurate and efficient post-training quantization for large language models",
    equation 4: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``. Besides norms, the linear layers before attention's and
    the feed-forward's second layer take the inverse, where they can.

    Args:
        rows: Number of rows of training text to calibrate on.
        alpha: Migration strength in [0, 1]; the larger, the more of the outliers moves into the weights.
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
        return usable(scales, (inputs > 0) & (largest > 0))
