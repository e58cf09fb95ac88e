"""fp8 weights: 8-bit floating-point numbers times a scale."""

from torch import Tensor

from slimexp.quantizer.float8 import Float8
from slimexp.quantizer.grid import Grid


class Fp8(Float8):
    """Grid for weights whose largest number, 448, is the largest entry of a row, group or tensor, by magnitude."""

    def fitted(self, x: Tensor) -> Grid:
        low, high = self.granularity.split(x).aminmax(dim=-1)
        return self.scaled(low, high)
