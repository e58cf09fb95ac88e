"""What every importance is: a score per weight; pruning keeps the highest."""

from abc import ABC, abstractmethod

from torch import Tensor


class Importance(ABC):
    """Scores the entries of one weight."""

    @abstractmethod
    def score(self, weight: Tensor) -> Tensor:
        """Importance of each entry.

        Args:
            weight: [out, in], without gradient.

        Returns:
            Finite scores of the same shape and device; larger is kept longer.
        """
