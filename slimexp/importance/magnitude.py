"""Magnitude: the importance of a weight is its absolute value."""

from torch import Tensor

from slimexp.importance.base import Importance


class Magnitude(Importance):
    """Absolute value (the baseline of LeCun et al. 1989; Han et al. 2015).

    Any power of the absolute value ranks entries alike, so there is no norm to choose here; L1 and L2 differ for
    blocks of entries, and are chosen there (``pattern.block``).
    """

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        return weight.detach().abs()
