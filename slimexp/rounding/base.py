"""Base class of roundings, which use statistics of a layer's inputs to round its weight to a grid."""

from abc import ABC, abstractmethod

from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid


class Rounding(ABC):
    """Rounds weights to the grids of their quantizers, otherwise than to nearest.

    The technique calls ``observe`` per row of training text and layer, adds up with ``merge`` what that returns, and
    hands the sum to ``round``. So a rounding holds no state and knows neither models nor corpora.

    Args:
        rows: Number of rows of training text to calibrate on, >= 1.
    """

    def __init__(self, *, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rounding.rows must be >= 1, got {rows}")
        self.rows = rows

    @abstractmethod
    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        """What one row of text adds to the layer's statistic.

        Args:
            weight: [out, in], without gradient.
            observed: The layer's input at every token of the row, [N, in].

        Returns:
            A float32 tensor of the same shape for every row.
        """

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """The statistic of rows together: the sum, written to ``total``."""
        return total.add_(part)

    @abstractmethod
    def round(self, weight: Tensor, alive: Tensor, statistic: Tensor, quantizer: Quantizer) -> tuple[Tensor, Grid]:
        """Round the weight of a layer.

        Args:
            weight: [out, in].
            alive: Bool, same shape; what is dead counts as zero and stays so.
            statistic: What ``observe`` of all rows came to.
            quantizer: Fits grids; it is left as it is.

        Returns:
            The new weight in float32, zero where it is dead, and the grid that it is on, for ``Quantizer.keep``.

        Raises:
            ValueError: The statistic does not allow it.
        """
