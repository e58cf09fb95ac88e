"""Min-max: the largest entry of a row or group is the largest integer."""

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer

_BFLOAT16_DIGITS = 8  # binary digits of a bfloat16 significand, the leading one included


class MinMax(Quantizer):
    """Symmetric grid for weights, its scale taken from the current weight in every forward.

    ``scale = max |w| / (2^(bits-1) - 1)``, integers in ±(2^(bits-1) - 1): 2^bits - 1 levels (ternary
    at 2 bits). The scale is rounded to a few binary digits, which costs at most half a step at the
    largest entry and makes ``integer * scale`` exact: in float32 at any width, in bfloat16 up to 4
    bits. So quantizing twice changes nothing, and an artifact holds the trained grid bit for bit.
    """

    def scale(self, x: Tensor) -> Tensor:
        largest = self.granularity.split(x.detach()).abs().amax(-1).float()
        scale = rounded(largest / self.limits[1], digits=self.digits)
        # a row of zeros has no scale of its own; any will do
        return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, 1.0)

    @property
    def limits(self) -> tuple[int, int]:
        largest = 2 ** (self.bits - 1) - 1
        return -largest, largest

    @property
    def digits(self) -> int:
        """Significant binary digits of a scale.

        At 5 bits and more, leaving room for the integer's digits in a bfloat16 product would round
        the scale so far that the largest entry is no longer the largest integer.
        """
        return _BFLOAT16_DIGITS - (self.bits - 1) if self.bits <= 4 else _BFLOAT16_DIGITS


def rounded(x: Tensor, *, digits: int) -> Tensor:
    """``x`` to so many significant binary digits, to nearest."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**digits).round(), exponent - digits)
