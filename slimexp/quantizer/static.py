"""Static rounding of activations to integers: one scale per layer, calibrated before."""

from collections.abc import Callable

from torch import Tensor

from slimexp.quantizer.activation import Calibrated
from slimexp.quantizer.base import Grid, Quantizer


class Static(Calibrated):
    """Symmetric integers in the full range, as served.

    Args:
        range: Partial of the quantizer whose range is taken, over all that was seen as if it were one row.
    """

    def __init__(
        self,
        *,
        bits: int,
        group_size: int | str | None = None,
        symmetric: bool = True,
        range: Callable[..., Quantizer] | None = None,
    ) -> None:
        super().__init__(bits=bits, group_size=None, symmetric=symmetric)
        self.range = range

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def fitted(self, x: Tensor) -> Grid:
        if self.range is None:
            raise ValueError("static activations need calibration before they are rounded: train the stage anew")
        return self.range(bits=self.bits, group_size=None, symmetric=True).fitted(x.flatten())
