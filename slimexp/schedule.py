"""Schedules: a number as a pure function of training progress.

``progress`` is optimizer step / total steps in [0, 1], so that a resumed run, another batch size or gradient
accumulation does not change the curve.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


class Schedule(ABC):
    """A curve from ``start`` at progress 0 to ``end`` at progress 1."""

    def __init__(self, *, start: float, end: float) -> None:
        self.start = start
        self.end = end

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * self.shape(min(max(progress, 0.0), 1.0))

    @abstractmethod
    def shape(self, progress: float) -> float:
        """A monotone map of [0, 1] onto [0, 1] (for a constant, to 0)."""


class Constant(Schedule):
    """The same value throughout."""

    def __init__(self, *, value: float) -> None:
        super().__init__(start=value, end=value)

    def shape(self, progress: float) -> float:
        return 0.0


class Linear(Schedule):
    """A straight line."""

    def shape(self, progress: float) -> float:
        return progress


class Cosine(Schedule):
    """Half a cosine: flat at both ends."""

    def shape(self, progress: float) -> float:
        return (1 - math.cos(math.pi * progress)) / 2


class Exponential(Schedule):
    """A constant ratio per step.

    Raises:
        ValueError: ``start`` or ``end`` is not positive.
    """

    def __init__(self, *, start: float, end: float) -> None:
        if start <= 0 or end <= 0:
            raise ValueError(f"an exponential schedule needs start > 0 and end > 0, got {start} and {end}")
        super().__init__(start=start, end=end)

    def shape(self, progress: float) -> float:
        if self.start == self.end:
            return progress
        ratio = self.end / self.start
        return (ratio**progress - 1) / (ratio - 1)


class Cubic(Schedule):
    """Fast first, flat at the end: ``end + (start - end) * (1 - progress)^3``.

    Zhu & Gupta 2017, "To prune, or not to prune", equation 1.
    """

    def shape(self, progress: float) -> float:
        return 1 - (1 - progress) ** 3


class Step(Schedule):
    """A value until the first milestone, the next from there to the second, and so on.

    Args:
        values: Values in order, rising or falling throughout.
        milestones: Progress at which the next value begins, ascending in (0, 1); one fewer than there are values.

    Raises:
        ValueError: Values change their direction, or milestones do not lie between them.
    """

    def __init__(self, *, values: Sequence[float], milestones: Sequence[float]) -> None:
        if not values or list(values) not in (sorted(values), sorted(values, reverse=True)):
            raise ValueError(f"values must rise or fall throughout, got {list(values)}: put them in order")
        if len(milestones) != len(values) - 1:
            raise ValueError(
                f"{len(values)} values need {len(values) - 1} milestones, one between each two, got {list(milestones)}"
            )
        if not all(before < after for before, after in pairwise((0.0, *milestones, 1.0))):
            raise ValueError(f"milestones must be ascending shares of the training in (0, 1), got {list(milestones)}")
        super().__init__(start=values[0], end=values[-1])
        self.values = list(values)
        self.milestones = list(milestones)

    def shape(self, progress: float) -> float:
        value = self.values[bisect_right(self.milestones, progress)]
        return (value - self.start) / (self.end - self.start) if self.end != self.start else 0.0
