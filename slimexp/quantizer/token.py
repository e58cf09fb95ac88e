"""Dynamic per-token rounding of activations."""

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer


class Token(Quantizer):
    """Symmetric grid for activations, one scale per token, taken anew from each input.

    ``scale = max |x| / (2^bits - 1) * 2``, integers in the full range: the arithmetic that
    compressed-tensors performs on a loaded artifact (its largest integer clips by half a step), so
    that what is trained is what is served. Its scale is not a fixed point: rounding twice moves
    the largest entry.
    """

    def scale(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            raise ValueError(
                f"activations are quantized per token and need inputs [B, T, D], got shape {list(x.shape)}: "
                "set activation_bits to null for this model"
            )
        low, high = self.limits
        scale = self.granularity.split(x.detach()).abs().amax(-1) / ((high - low) / 2)
        return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
