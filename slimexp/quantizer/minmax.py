"""Min-max: the grid reaches from the smallest to the largest entry of a row or group."""

from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid


class MinMax(Quantizer):
    """Grid for weights, computed from the current weight in every forward pass until it is frozen.

    Symmetric integers use every level, see ``Quantizer.scaled``. Rounding the scale costs at most half a step at the
    largest entry, and quantizing twice on a symmetric grid changes nothing.
    """

    def fitted(self, x: Tensor) -> Grid:
        low, high = self.granularity.split(x).aminmax(dim=-1)
        return self.scaled(low, high)
