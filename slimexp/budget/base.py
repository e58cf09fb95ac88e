"""Budgets: what a shape of a model costs, and the most that it may cost."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from slimexp.cut.shape import Shape
from slimexp.model.base import Family

Cost = Callable[[Shape], float]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A model and the shapes that it could be cut to.

    Attributes:
        family: The whole model.
        lattice: Stack or width -> numbers of units that it may have, in descending order from the whole.
        count: Shape -> its number of parameters, exactly.
        build: Shape -> the model of this shape.
    """

    family: Family
    lattice: Mapping[str, Sequence[int]]
    count: Callable[[Shape], int]
    build: Callable[[Shape], Family]

    @property
    def whole(self) -> dict[str, int]:
        """The shape of the whole model."""
        return {key: options[0] for key, options in self.lattice.items()}


class Budget(ABC):
    """An upper limit on the cost of a model; a shape that meets it is searched for.

    Attributes:
        limit: The highest cost allowed, in ``unit``.
        unit: Unit of the cost, for messages.
        counts: Whether the cost depends on the numbers of parameters alone, so that a model without weights tells it.
        axes: Axes that the cost depends on; ``None`` for all.
    """

    counts: ClassVar[bool] = False
    axes: ClassVar[Sequence[str] | None] = None
    limit: float
    unit: str

    @abstractmethod
    def cost(self, space: SearchSpace) -> Cost:
        """A function from shapes to their cost, perhaps estimated.

        It is called millions of times, so it must be fast, and must fall with every unit removed.
        """

    def reached(self, space: SearchSpace, shape: Shape, cost: Cost) -> float:
        """The true cost of the shape that was found, measured where ``cost`` is an estimate."""
        return cost(shape)
