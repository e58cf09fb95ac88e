"""Which points of a sweep's front are run again in earnest: trained in full, graded on text that chose nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Promotion:
    """How many points, and under what.

    Attributes:
        most: Points, evenly spread over the front; 0 for none.
        overrides: Added to those of the trial.
        seeds: Seeds of every point, whose mean counts; none for those of the sweep.

    Raises:
        ValueError: ``most`` is negative, or seeds repeat.
    """

    most: int = 0
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.most < 0:
            raise ValueError(f"hydra.sweeper.promote.most must be >= 0, got {self.most}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"hydra.sweeper.promote.seeds must be distinct, got {list(self.seeds)}")

    def chosen(self, front: Sequence[T]) -> list[T]:
        """The points promoted, out of a front in the order of an objective: its ends, and evenly between them."""
        if len(front) <= self.most:
            return list(front)
        if self.most == 1:
            return [front[0]]
        return [front[round(place * (len(front) - 1) / (self.most - 1))] for place in range(self.most)]
