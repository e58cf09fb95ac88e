"""The choices of least added-up loss under any set of budgets, as a mixed-integer linear program (solved to ``GAP``).

A binary variable says that a block has certain widths and a precision, or is gone; one more for each combination of the
widths that all blocks share. Further solutions are found by excluding those that are near one found before.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from slimexp.candidate.choice import Candidate, Choices, Place
from slimexp.candidate.precision import FLOAT, Precision
from slimexp.host.compiled_output import unprinted
from slimexp.host.progress import counted

SECONDS = 60.0  # of one solution; what is found until then is the best known
GAP = 1e-4  # of the least loss: the scores are noisier by far
_INFEASIBLE = 2  # status of SciPy's milp
_SCALE = 1e4  # of losses: the solver holds two sums that differ by 1e-6 for equal


Column = tuple[Place, int | None, Precision | None]  # combination and precision of a block; None for a removed one


class Price(Protocol):
    """What a model costs or loses, as a sum over its blocks."""

    def base(self, widths: Mapping[str, int]) -> float:
        """What is outside the blocks, at some widths."""

    def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
        """What a block of some widths and precision adds."""

    def removed(self, place: Place) -> float:
        """What a removed block adds."""


@dataclass(frozen=True)
class Limit:
    """A budget.

    Attributes:
        name: Name of the budget, as in the config.
        most: The largest cost allowed, in its unit.
        price: What models cost in it.
    """

    name: str
    most: float
    price: Price


class Infeasible(ValueError):
    """No choice meets the budgets.

    Attributes:
        nearest: The candidate that exceeds them least, by the largest ratio of a cost to its budget.
        costs: Name of a budget -> cost of the nearest.
    """

    def __init__(self, nearest: Candidate, costs: Mapping[str, float], limits: Sequence[Limit], alone: bool) -> None:
        self.nearest, self.costs = nearest, dict(costs)
        over = [limit for limit in limits if costs[limit.name] > limit.most * (1 + 1e-9)]
        binds = ", ".join(f"budget.{limit.name}={limit.most:.6g} (it has {costs[limit.name]:.6g})" for limit in over)
        why = "" if alone else "; each of the budgets can be met alone, they contradict each other"
        super().__init__(
            f"no shape meets the budget; what binds is {binds}{why}. The nearest: {nearest}. Raise the budget, or give "
            "search.heads, search.ffn, search.hidden, search.experts, search.bits or search.expert_bits smaller choices"
        )


class Undecided(ValueError):
    """The solver ended without a solution, and without knowing that there is none."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the solver found no shape that meets the budget, and cannot say that there is none ({reason}): raise "
            "the budget, or give search.heads, search.ffn, search.hidden, search.experts or search.bits fewer choices"
        )


class Program:
    """The mixed-integer program of a model's choices.

    Args:
        choices: What may become of its blocks.
        loss: Losses of choices, nats.
    """

    def __init__(self, choices: Choices, loss: Price) -> None:
        self.choices, self.loss = choices, loss
        self._combinations = choices.combinations
        shared = [choices.shared(widths) for widths in self._combinations]
        self._shared = [widths for number, widths in enumerate(shared) if widths not in shared[:number]]
        self._part = [self._shared.index(widths) for widths in shared]  # of each combination
        self._columns: list[Column] = []
        for place in choices.places:
            if place in choices.removable:
                self._columns.append((place, None, None))
            self._columns += [(place, c, p) for c in range(len(self._combinations)) for p in choices.precisions]
        self._rounded = [p for p in choices.precisions if p.bits != FLOAT] if choices.one_width else []
        self._size = len(self._columns) + len(self._shared) + len(self._rounded)
        self.losses = self._values(loss)
        self._structure = self._constraints()

    def hold(self, limits: Sequence[Limit]) -> None:
        """Refuse budgets that no choice meets, which losses have no part in.

        Raises:
            Infeasible: No choice meets them.
            Undecided: The solver does not know.
        """
        if self._run(self.losses, [self._budget(limit) for limit in limits]) is None:
            raise self._infeasible(limits)

    def solve(self, limits: Sequence[Limit], *, most: int, apart: int) -> list[tuple[Candidate, float]]:
        """Candidates and their added-up losses, best first; half of them, where there are as many, of other widths.

        Args:
            limits: Budgets that all of them meet; none for the least loss of all.
            most: Number of candidates, at most.
            apart: Least number of blocks in which any two differ by more than bits, as far as there is more to choose:
                bits add up well enough, removed blocks and widths do not.

        Raises:
            Infeasible: No choice meets the budgets.
            Undecided: The solver does not know.
        """
        budgets = [self._budget(limit) for limit in limits]
        found: list[tuple[Candidate, float]] = []
        cuts: list[LinearConstraint] = []
        undecided: list[Undecided] = []
        of_widths = [self._with(number) for number in range(len(self._shared))]
        half, of_any = -(-most // 2), 0
        for extra in counted([*([one] for one in of_widths), *([] for _ in range(most))], "solution"):
            enough = of_any >= most - min(half, len(found) - of_any)
            if not extra and enough and not self.choices.unlike:
                break  # further ones are worse than these, and of widths that are there: none would be returned
            try:
                x = self._run(self.losses, [*budgets, *cuts, *extra])
            except Undecided as error:
                undecided.append(error)
                continue
            if x is None:
                continue
            of_any += not extra
            found.append((self._candidate(x), float(self.losses @ x)))
            cuts.append(LinearConstraint(csr_array(self._alike(x)[None]), ub=len(self.choices.places) - apart))
        if not found:
            raise next(iter(undecided), None) or self._infeasible(limits)
        found.sort(key=lambda pair: pair[1])
        unlike = {tuple(candidate.widths.values()): (candidate, loss) for candidate, loss in reversed(found)}
        best = sorted(unlike.values(), key=lambda pair: pair[1])[:half]  # half of them of other widths
        rest = [pair for pair in found if pair not in best]
        return sorted([*best, *rest[: most - len(best)]], key=lambda pair: pair[1])

    def cost(self, candidate: Candidate, price: Price) -> float:
        """Cost of a candidate."""
        inside = sum(price.block(place, candidate.widths_at(place), p) for place, p in candidate.precisions.items())
        gone = sum(price.removed(place) for place in self.choices.places if place not in candidate.bits)
        return price.base(candidate.widths) + inside + gone

    def _with(self, number: int) -> LinearConstraint:
        """Models of one combination of shared widths."""
        row = np.zeros(self._size)
        row[len(self._columns) + number] = 1
        return LinearConstraint(csr_array(row[None]), 1, 1)

    def _alike(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """1 at every choice of a block that differs from that of a solution by its bits at most."""
        structural = bool(self.choices.removable) or len(self._combinations) > 1
        taken = {self._alike_key(column, structural) for column, on in zip(self._columns, x, strict=False) if on > 0.5}
        row = np.zeros(self._size)
        row[: len(self._columns)] = [self._alike_key(column, structural) in taken for column in self._columns]
        return row

    @staticmethod
    def _alike_key(column: Column, structural: bool) -> Column:
        return (*column[:2], None) if structural else column

    def _run(self, objective: NDArray[np.float64], constraints: Sequence[LinearConstraint]) -> NDArray[Any] | None:
        """The solution of least cost; ``None`` where there is none."""
        scale = _SCALE / max(float(np.abs(objective).max()), 1e-30)
        solution = _solved(
            objective * scale,
            integrality=np.ones(len(objective)),
            bounds=(0, 1),
            options={"mip_rel_gap": GAP, "time_limit": SECONDS},
            constraints=[*self._structure, *constraints],
        )
        if solution.x is not None:
            return np.round(solution.x)
        if solution.status != _INFEASIBLE:
            raise Undecided(solution.message)
        return None

    def _values(self, price: Price) -> NDArray[np.float64]:
        """What each variable adds."""
        row = np.zeros(self._size)
        for column, (place, combination, precision) in enumerate(self._columns):
            if combination is None or precision is None:
                row[column] = price.removed(place)
            else:
                row[column] = price.block(place, self._combinations[combination], precision)
        for number in range(len(self._shared)):  # heads and neurons change nothing outside the blocks
            row[len(self._columns) + number] = price.base(self._combinations[self._part.index(number)])
        return row

    def _budget(self, limit: Limit) -> LinearConstraint:
        return LinearConstraint(csr_array(self._values(limit.price)[None] / limit.most), ub=1)

    def _constraints(self) -> list[LinearConstraint]:
        """One choice for each block, and the same widths (and precision) for all."""
        rows: list[Mapping[int, float]] = []  # variable -> factor
        bounds: list[tuple[float, float]] = []

        def add(row: Mapping[int, float], least: float, most: float) -> None:
            rows.append(row)
            bounds.append((least, most))

        first_width, first_bits = len(self._columns), len(self._columns) + len(self._shared)
        of_place: dict[Place, dict[int, float]] = defaultdict(dict)
        with_shared: dict[tuple[Place, int], dict[int, float]] = defaultdict(dict)  # by a variable of all blocks
        depths: dict[str, dict[int, float]] = {stack: {} for stack in self.choices.stacks}
        for column, (place, combination, precision) in enumerate(self._columns):
            of_place[place][column] = 1
            if combination is None:
                continue
            depths[place.stack][column] = 1
            with_shared[place, first_width + self._part[combination]][column] = 1
            if precision in self._rounded:
                with_shared[place, first_bits + self._rounded.index(precision)][column] = 1
        add(dict.fromkeys(range(first_width, first_bits), 1), 1, 1)
        if self._rounded:
            add(dict.fromkeys(range(first_bits, self._size), 1), 1, 1)
        for row in of_place.values():
            add(row, 1, 1)
        for (_, shared), row in with_shared.items():
            add({**row, shared: -1}, -np.inf, 0)
        for row in depths.values():
            add(row, 1, np.inf)
        if self.choices.paired:
            add({**depths["encoder"], **dict.fromkeys(depths["decoder"], -1)}, 0, np.inf)
        matrix = csr_array(
            (
                [factor for row in rows for factor in row.values()],
                [variable for row in rows for variable in row],
                np.cumsum([0, *map(len, rows)]),
            ),
            shape=(len(rows), self._size),
            dtype=np.float64,
        )
        return [LinearConstraint(matrix, *np.array(bounds).T)]

    def _candidate(self, x: NDArray[Any]) -> Candidate:
        chosen = [column for column, taken in zip(self._columns, x[: len(self._columns)], strict=True) if taken > 0.5]
        of_block = {place: self._combinations[c] for place, c, _ in chosen if c is not None}
        widths = next(iter(of_block.values()))
        found = Candidate.of(widths, {}).rounded({place: p for place, _, p in chosen if p is not None})
        for name in self.choices.unlike:
            found = found.keeping(name, {place: own[name] for place, own in of_block.items()})
        return found

    def _least(self, price: Price) -> float:
        """The least cost of all."""
        values = self._values(price)
        x = self._run(values, [])
        assert x is not None
        return float(values @ x)

    def _infeasible(self, limits: Sequence[Limit]) -> Infeasible:
        """The choice whose largest ratio of cost to budget is least, and whether a budget binds by itself."""
        rows = np.stack([self._values(limit.price) / limit.most for limit in limits])
        objective = np.append(np.zeros(self._size), 1.0)  # the largest ratio
        wide = [
            LinearConstraint(csr_array(c.A, shape=(len(c.lb), self._size + 1)), c.lb, c.ub) for c in self._structure
        ]
        largest = LinearConstraint(np.hstack([rows, -np.ones((len(limits), 1))]), ub=0)
        solution = _solved(
            objective,
            integrality=np.append(np.ones(self._size), 0),
            bounds=(0, np.append(np.ones(self._size), np.inf)),
            constraints=[*wide, largest],
            options={"time_limit": SECONDS},
        )
        if solution.x is None:
            raise Undecided(solution.message)
        nearest = self._candidate(np.round(solution.x[:-1]))
        costs = {limit.name: self.cost(nearest, limit.price) for limit in limits}
        alone = any(self._least(limit.price) > limit.most for limit in limits)
        return Infeasible(nearest, costs, limits, alone)


def _solved(objective: NDArray[np.float64], **arguments: Any) -> Any:
    """SciPy's ``milp``, whose HiGHS prints a line of its debugging for every solution that it improves."""
    with unprinted():
        return milp(objective, **arguments)
