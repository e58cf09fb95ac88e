"""Ternary: -1, 0 and 1 times a scale."""

from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid


class Ternary(Quantizer):
    """Three levels; stored in 2 bits, whose fourth level is unused.

    Ma et al. 2024, "The era of 1-bit LLMs" (equation 3): ``scale = mean |w|``, per row or group instead of per tensor.
    """

    widths = range(2, 3)
    symmetric_only = True

    @property
    def limits(self) -> tuple[int, int]:
        return -1, 1

    def fitted(self, x: Tensor) -> Grid:
        mean = self.granularity.split(x).abs().mean(-1)
        return self.scaled(-mean, mean)
