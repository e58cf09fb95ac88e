"""n:m: of every m neighbours in a row, n are not zero."""

from torch import Tensor

from slimexp.pattern.base import Pattern


class NM(Pattern):
    """Fine-grained structured sparsity (Zhou et al. 2021, "Learning N:M fine-grained structured sparse networks").

    The sparsity decides n: with ``sparsity`` 0.5, ``m`` 4 is 2:4 and ``m`` 8 is 4:8. Along a schedule a group loses one
    weight after another: 4:4, 3:4, 2:4. Where an earlier stage left fewer than n weights, all of them stay.

    Args:
        m: Number of neighbours in a group, >= 2; must divide the length of a row.
    """

    any_share = False

    def __init__(self, *, m: int) -> None:
        if m < 2:
            raise ValueError(f"m must be >= 2 neighbours, got {m}")
        self.m = m
        self.group_width = m

    @property
    def row_multiple(self) -> int:
        return self.m

    def validate(self, sparsity: float) -> None:
        super().validate(sparsity)
        zeros = sparsity * self.m
        if abs(zeros - round(zeros)) > 1e-6 * self.m:  # a share with as few digits as in the message below passes
            nearest = min(round(zeros), self.m - 1)
            raise ValueError(
                f"sparsity must be a multiple of 1/{self.m} for groups of m={self.m}, got {sparsity}: "
                f"the nearest is {nearest / self.m:.6g} ({self.m - nearest}:{self.m})"
            )

    def split(self, x: Tensor) -> Tensor:
        if x.shape[1] % self.m:
            raise ValueError(
                f"m must divide the length of a row, got {self.m} for rows of {x.shape[1]}: choose a divisor"
            )
        return x.reshape(-1, self.m, 1)
