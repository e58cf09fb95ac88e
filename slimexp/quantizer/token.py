"""Dynamic per-token rounding of activations."""

import torch
from torch import Tensor

from slimexp.quantizer.base import Grid, Quantizer


class Token(Quantizer):
    """Symmetric grid for activations, one scale per token, taken anew from each input.

    ``scale = max |x| / (2^bits - 1) * 2``, integers in the full range: the arithmetic that
    compressed-tensors performs on a loaded artifact (its largest integer clips by half a step), so
    that what is trained is what is served. Its scale is not a fixed point: rounding twice moves
    the largest entry.
    """

    dynamic = True
    symmetric_only = True
    on_activations = True
    on_weights = False

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def fitted(self, x: Tensor) -> Grid:
        if x.dim() != 3:
            raise ValueError(
                f"activations are quantized per token and need inputs [B, T, D], got shape {list(x.shape)}: "
                "set activation_bits to null for this model"
            )
        low, high = self.limits
        scale = self.granularity.split(x).abs().amax(-1) / ((high - low) / 2)
        return Grid(torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale))

    def round(self, x: Tensor, grid: Grid) -> Tensor:
        """In the type of ``x`` throughout, as it is served."""
        groups, scale = self.granularity.split(x), grid.scale.unsqueeze(-1)
        return ((groups / scale).clamp(*self.limits).round() * scale).reshape(x.shape)
