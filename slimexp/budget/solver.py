"""The shape that meets a budget: scored once per axis, solved for any budget, decided by what few candidates lose."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product

from slimexp.budget.base import Cost
from slimexp.cut.shape import Shape
from slimexp.host.console import counted

Loss = Callable[[Shape], float]
Lattice = Mapping[str, Sequence[int]]  # word of a shape -> numbers of units, from the whole down


class Unreachable(ValueError):
    """No shape costs so little.

    Attributes:
        shape: The cheapest.
        cost: What it costs.
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

    The loss of every axis cut alone is taken at each number of units that could matter. Their sum ranks the shapes that
    fit and could keep no more, and the loss itself decides between the ``candidates`` first.

    Args:
        lattice: What there is to choose from.
        cost: What a shape costs; falls with every unit.
        limit: Most that it may cost.
        loss: What the model of a shape loses on calibration text.
        candidates: Shapes whose loss is taken, at most.
        allowed: Whether a shape can be at all.

    Raises:
        Unreachable: No shape costs so little.
    """
    least = {word: options[-1] for word, options in lattice.items()}
    if cost(least) > limit:
        raise Unreachable(least, cost(least))
    whole = {word: options[0] for word, options in lattice.items()}
    useful = {word: _useful(word, options, whole, cost, limit) for word, options in lattice.items()}
    base = loss(whole)
    cuts = [(word, units) for word, options in useful.items() for units in options if units < whole[word]]
    damage = dict.fromkeys(whole.items(), 0.0)
    damage |= {(word, units): loss({**whole, word: units}) - base for word, units in counted(cuts, "solving: cut")}

    def fits(shape: Shape) -> bool:
        return cost(shape) <= limit and allowed(shape)

    affordable = (shape for shape in _shapes(useful) if cost(shape) <= limit)
    ranked = sorted(affordable, key=lambda shape: math.fsum(damage[item] for item in shape.items()))
    # of millions few are looked at, and what is allowed takes long to say
    tight = (shape for shape in ranked if allowed(shape) and not any(map(fits, _larger(useful, shape))))
    best = list(islice(tight, candidates))
    if not best:
        raise Unreachable(least, cost(least))
    losses = [loss(shape) for shape in counted(best, "solving: candidate")]
    return best[losses.index(min(losses))]


def describe(shape: Shape) -> str:
    """``{"ffn": 32, "hidden": 64}`` -> ``ffn 32, hidden 64``."""
    return ", ".join(f"{word} {units}" for word, units in shape.items())


def _useful(word: str, options: Sequence[int], whole: Shape, cost: Cost, limit: float) -> Sequence[int]:
    """Options down to the first that meets the budget by itself: to take more of one axis cannot be needed."""
    enough = (i for i, units in enumerate(options) if cost({**whole, word: units}) <= limit)
    return options[: next(enough, len(options)) + 1]


def _larger(lattice: Lattice, shape: Shape) -> Iterator[Shape]:
    """Those that keep one step more of one axis."""
    for word, options in lattice.items():
        at = options.index(shape[word])
        if at:
            yield {**shape, word: options[at - 1]}


def _shapes(lattice: Lattice) -> Iterator[dict[str, int]]:
    return (dict(zip(lattice, units, strict=True)) for units in product(*lattice.values()))
