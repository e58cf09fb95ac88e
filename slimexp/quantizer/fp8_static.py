"""Static rounding of activations to fp8: one calibrated scale per layer."""

from torch import Tensor

from slimexp.quantizer.activation import Calibrated
from slimexp.quantizer.float8 import Float8
from slimexp.quantizer.grid import Grid


class Fp8Static(Float8, Calibrated):
    """8-bit floating-point numbers times a scale whose largest number is the largest calibration input."""

    def __init__(self, *, bits: int, group_size: int | str | None = None, symmetric: bool = True) -> None:
        super().__init__(bits=bits, group_size=None, symmetric=symmetric)

    def fitted(self, x: Tensor) -> Grid:
        largest = x.abs().amax().flatten()
        return self.scaled(-largest, largest)
