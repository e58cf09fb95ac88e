"""What every budget is: a cost of shapes, and the most that one may cost."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from slimexp.cut.shape import Shape
from slimexp.model.base import Family

Cost = Callable[[Shape], float]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A model and what could be cut out of it.

    Attributes:
        family: The whole model.
        lattice: Stack or width -> the numbers of units it may have, from the whole down.
        count: Parameters of a shape, exactly.
        build: The model of a shape.
    """

    family: Family
    lattice: Mapping[str, Sequence[int]]
    count: Callable[[Shape], int]
    build: Callable[[Shape], Family]

    @property
    def whole(self) -> dict[str, int]:
        """The shape of the model itself."""
        return {word: options[0] for word, options in self.lattice.items()}


class Budget(ABC):
    """What the user wants; shapes are solved for.

    Attributes:
        limit: Most that a shape may cost.
        unit: What the limit is a number of, for messages.
    """

    limit: float
    unit: str

    @abstractmethod
    def cost(self, space: SearchSpace) -> Cost:
        """What a shape costs, cheap to ask; falls with every unit."""

    def reached(self, space: SearchSpace, shape: Shape, cost: Cost) -> float:
        """What the shape that was solved for costs in truth, where the cost is an estimate."""
        return cost(shape)
