"""Static rounding of activations to fp8: one scale per layer, calibrated before."""

from torch import Tensor

from slimexp.quantizer.activation import Calibrated
from slimexp.quantizer.base import Grid
from slimexp.quantizer.float8 import Float8


class Fp8Static(Float8, Calibrated):
    """8-bit floating-point numbers times a scale that reaches over all that was seen."""

    def __init__(self, *, bits: int, group_size: int | str | None = None, symmetric: bool = True) -> None:
        super().__init__(bits=bits, group_size=None, symmetric=symmetric)

    def fitted(self, x: Tensor) -> Grid:
        largest = x.abs().amax().flatten()
        return self.scaled(-largest, largest)
