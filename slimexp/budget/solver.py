"""Search for the shape of least loss within a budget: losses of single axes rank shapes, a few candidates are run."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product

from slimexp.budget.base import Cost
from slimexp.cut.shape import Shape
from slimexp.host.progress import counted

Loss = Callable[[Shape], float]
Lattice = Mapping[str, Sequence[int]]  # key of a shape -> numbers of units, in descending order from the whole


class Unreachable(ValueError):
    """No shape meets the budget.

    Attributes:
        shape: The cheapest shape.
        cost: Its cost.
    """

    def __init__(self, shape: Shape, cost: float) -> None:
        super().__init__(f"the least that can be had is {cost:.4g}: {describe(shape)}")
        self.shape = shape
        self.cost = cost


def solve(
    lattice: Lattice,
    *,
    cost: Cost,
    limit: float,
    loss: Loss,
    candidates: int,
    allowed: Callable[[Shape], bool] = lambda shape: True,
) -> Shape:
    """The shape of least loss among those that cost at most ``limit``.

    Each axis is cut alone, to every number of units that could be needed, and the rise of the loss is measured. The sum
    of these ranks the shapes that meet the budget and could retain no more, and the loss itself decides between the
    first ``candidates``. Where one axis alone can be cut, no loss is measured.

    Args:
        lattice: Key of a shape -> numbers of units to choose from.
        cost: Cost of a shape; falls with every unit removed.
        limit: The highest cost allowed.
        loss: Loss of the model of a shape on calibration text.
        candidates: Largest number of shapes whose own loss is measured.
        allowed: Whether a model of such a shape can exist.

    Raises:
        Unreachable: No shape meets the budget.
    """
    least = {key: options[-1] for key, options in lattice.items()}
    if cost(least) > limit:
        raise Unreachable(least, cost(least))
    whole = {key: options[0] for key, options in lattice.items()}
    free = [key for key, options in lattice.items() if len(options) > 1]
    if len(free) == 1:  # the budget alone decides
        cut = ({**whole, free[0]: units} for units in lattice[free[0]])
        if (found := next((shape for shape in cut if cost(shape) <= limit and allowed(shape)), None)) is None:
            raise Unreachable(least, cost(least))
        return found
    useful = {key: _useful(key, options, whole, cost, limit) for key, options in lattice.items()}
    base = loss(whole)
    cuts = [(key, units) for key, options in useful.items() for units in options if units < whole[key]]
    increase = dict.fromkeys(whole.items(), 0.0)  # of the loss
    increase |= {(key, units): loss({**whole, key: units}) - base for key, units in counted(cuts, "cut")}

    def fits(shape: Shape) -> bool:
        return cost(shape) <= limit and allowed(shape)

    affordable = (shape for shape in _shapes(useful) if cost(shape) <= limit)
    ranked = sorted(affordable, key=lambda shape: math.fsum(increase[item] for item in shape.items()))
    # lazily: there may be millions of shapes, and ``allowed`` is slow
    tight = (shape for shape in ranked if allowed(shape) and not any(map(fits, _larger(useful, shape))))
    best = list(islice(tight, candidates))
    if not best:
        raise Unreachable(least, cost(least))
    losses = [loss(shape) for shape in counted(best, "candidate")]
    return best[losses.index(min(losses))]


def describe(shape: Shape) -> str:
    """``{"ffn": 32, "hidden": 64}`` -> ``ffn 32, hidden 64``."""
    return ", ".join(f"{key} {units}" for key, units in shape.items())


def _useful(key: str, options: Sequence[int], whole: Shape, cost: Cost, limit: float) -> Sequence[int]:
    """Options down to the first that meets the budget by itself: fewer units of this axis are never needed."""
    enough = (i for i, units in enumerate(options) if cost({**whole, key: units}) <= limit)
    return options[: next(enough, len(options)) + 1]


def _larger(lattice: Lattice, shape: Shape) -> Iterator[Shape]:
    """The shapes that retain the next larger number of units of one axis."""
    for key, options in lattice.items():
        position = options.index(shape[key])
        if position:
            yield {**shape, key: options[position - 1]}


def _shapes(lattice: Lattice) -> Iterator[dict[str, int]]:
    """Every shape of the lattice."""
    return (dict(zip(lattice, units, strict=True)) for units in product(*lattice.values()))
