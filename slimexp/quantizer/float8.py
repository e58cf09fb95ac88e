"""Floating-point numbers of 8 bits: the base of their quantizers."""

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer


class Float8(Quantizer):
    """Grid of ``number * scale`` for the numbers of float8_e4m3fn: 4 exponent bits, 3 of mantissa, ±448 at most.

    Micikevicius et al. 2022, "FP8 formats for deep learning", table 1. Larger numbers are clipped: the format has no
    infinity. Steps grow with the numbers, so that outliers cost the small entries of a tensor less than on integers.
    """

    widths = range(8, 9)
    symmetric_only = True
    stored = torch.float8_e4m3fn

    @property
    def limits(self) -> tuple[int, int]:
        return -448, 448

    def nearest(self, steps: Tensor) -> Tensor:
        return steps.clamp(*self.limits).to(self.stored).to(steps.dtype)
