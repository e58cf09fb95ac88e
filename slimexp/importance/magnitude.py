"""Magnitude: large weights matter."""

from torch import Tensor

from slimexp.importance.base import Importance


class Magnitude(Importance):
    """Absolute value (LeCun et al. 1989 call it the baseline to beat; Han et al. 2015).

    Any power of the absolute value ranks entries alike, so there is no norm to choose here; L1 and L2 differ for
    blocks of entries, and are chosen there (``pattern.block``).
    """

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        return weight.detach().abs()
