"""Schedules: a number as a pure function of training progress.

``progress`` is optimizer step / total steps in [0, 1], so that a resumed run, another batch size or gradient
accumulation does not change the curve.
"""

import math
from abc import ABC, abstractmethod


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
