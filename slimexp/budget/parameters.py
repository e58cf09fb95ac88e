"""Parameters: the share of them that is retained."""

from slimexp.budget.base import Budget, Cost, SearchSpace


class Parameters(Budget):
    """Number of parameters over that of the incoming model; tied parameters count once.

    Args:
        share: The largest ratio allowed, in (0, 1).
    """

    counts = True
    unit = "of the parameters"

    def __init__(self, *, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"budget.share of the parameters that stay must be in (0, 1), got {share}")
        self.limit = share

    def cost(self, space: SearchSpace) -> Cost:
        dense = space.count(space.whole)
        return lambda shape: space.count(shape) / dense
