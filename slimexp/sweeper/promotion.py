"""Promotion: points of a sweep's front run again, trained in full, graded on text that chose nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

_PLACES = ("runs=", "logger.group=")  # overrides that change no result


@dataclass(frozen=True)
class Promotion:
    """The points that run again, and with which overrides.

    Attributes:
        most: Largest number of points, evenly spread over the front, then those that may belong to it; 0 for none.
        overrides: Overrides that are added to those of the trial.
        seeds: Seeds of every point, over which its metrics are averaged; empty for those of the sweep.

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

    def chosen(self, front: Sequence[T], may_belong: Sequence[T] = ()) -> list[T]:
        """The points promoted, out of a front in the order of an objective: its ends, and evenly between them.

        Args:
            front: The front.
            may_belong: Points that are not surely dominated, the likeliest first: where the front has fewer points than
                are promoted, they are graded anew as well.
        """
        if len(front) <= self.most:
            return [*front, *may_belong[: self.most - len(front)]]
        if self.most == 1:
            return [front[0]]
        return [front[round(place * (len(front) - 1) / (self.most - 1))] for place in range(self.most)]


def without_places(commands: object) -> object:
    """Command lines as JSON has them, without the overrides that only choose where results lie; ``None`` for others."""
    if not isinstance(commands, Sequence) or not all(isinstance(line, Sequence) for line in commands):
        return None
    return [[word for word in line if not str(word).startswith(_PLACES)] for line in commands]
