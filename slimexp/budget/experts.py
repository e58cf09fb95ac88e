"""Experts: the share of them that is retained in every mixture."""

from collections.abc import Sequence
from typing import ClassVar

from slimexp.architecture.base import EXPERTS
from slimexp.budget.base import Budget, Cost, SearchSpace


class Experts(Budget):
    """Number of routed experts of every mixture over that of the incoming model; nothing else goes.

    Args:
        share: The largest ratio allowed, in (0, 1).
    """

    counts = True
    unit = "of the experts"
    axes: ClassVar[Sequence[str] | None] = (EXPERTS,)

    def __init__(self, *, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"budget.share of the experts that stay must be in (0, 1), got {share}")
        self.limit = share

    def cost(self, space: SearchSpace) -> Cost:
        whole = space.whole.get(EXPERTS, 1)
        return lambda shape: shape.get(EXPERTS, 1) / whole
