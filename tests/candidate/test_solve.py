"""The solver against all candidates, one by one."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from scipy.optimize import OptimizeResult

from slimexp.candidate import solve
from slimexp.candidate.choice import Candidate, Choices, Place
from slimexp.candidate.precision import FLOAT, Precision
from slimexp.candidate.solve import GAP, Infeasible, Limit, Program, Undecided

DEPTH = 4
NARROW = 0.2
PLACES = [Place("decoder", index) for index in range(DEPTH)]
CHOICES = Choices(
    stacks={"decoder": DEPTH},
    removable=frozenset(PLACES[1:]),
    widths={"ffn": [8, 4]},
    combinations=[{"ffn": 8}, {"ffn": 4}],
    bits=[FLOAT, 8, 4],
    one_width=False,
    paired=False,
)


class Linear:
    """A price by neurons and bits, with a share that no block has."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.of_place = dict(zip(PLACES, self.random.uniform(0.5, 1.5, DEPTH), strict=True))

    def base(self, widths: Mapping[str, int]) -> float:
        return 0.5 + widths["ffn"] / 16

    def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
        return self.of_place[place] * widths["ffn"] * precision.bits / 128

    def removed(self, place: Place) -> float:
        return 0.0


class Outside(Linear):
    """A price whose share outside the blocks does not change with their neurons."""

    def base(self, widths: Mapping[str, int]) -> float:
        return 0.5


def losses(seed: int) -> dict[object, float]:
    random = np.random.default_rng(seed)
    found: dict[object, float] = {}
    for place in PLACES:
        found[place, "removed"] = float(random.uniform(0.1, 1))
        for ffn, bits in product((8, 4), (FLOAT, 8, 4)):
            found[place, ffn, bits] = (8 - ffn) * float(random.uniform(0, 0.1)) + float(random.uniform(0, 1)) / bits
    return found


def everything(choices: Choices) -> list[Candidate]:
    found = []
    for ffn, *bits in product((8, 4), *[[None, *choices.bits]] * DEPTH):
        kept = {place: b for place, b in zip(PLACES, bits, strict=True) if b is not None}
        if len(kept) and all(place in kept or place in choices.removable for place in PLACES):
            found.append(Candidate(heads=None, ffn=ffn, hidden=None, bits=kept))
    return found


def total(table: Mapping[object, float], candidate: Candidate) -> float:
    return NARROW * (candidate.ffn == 4) + sum(
        table[place, candidate.ffn, candidate.bits[place]] if place in candidate.bits else table[place, "removed"]
        for place in PLACES
    )


class Loss:
    """Losses of a table; a model of fewer neurons loses more."""

    def __init__(self, table: Mapping[object, float]) -> None:
        self.table = table

    def base(self, widths: Mapping[str, int]) -> float:
        return NARROW * (widths["ffn"] == 4)

    def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
        return self.table[place, widths["ffn"], precision.bits]

    def removed(self, place: Place) -> float:
        return self.table[place, "removed"]


def program(table: Mapping[object, float], choices: Choices = CHOICES) -> Program:
    return Program(choices, Loss(table))


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(4))
def test_the_best_under_two_budgets_of_all_candidates(seed: int) -> None:
    table, solver = losses(seed), program(losses(seed))
    limits = [Limit("disk_mb", 2.6, Linear(seed)), Limit("latency_ms", 2.9, Linear(seed + 10))]
    fitting = [c for c in everything(CHOICES) if all(solver.cost(c, limit.price) <= limit.most for limit in limits)]
    [(best, loss)] = solver.solve(limits, most=1, apart=1)
    assert best in fitting
    assert loss == pytest.approx(min(total(table, candidate) for candidate in fitting), rel=2 * GAP)
    assert loss == pytest.approx(total(table, best))


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(2))
def test_the_best_of_all_numbers_of_neurons_block_by_block(seed: int) -> None:
    options = replace(CHOICES, bits=[8], unlike=["ffn"])
    solver, limit = program(losses(seed), options), Limit("disk_mb", 1.8, Outside(seed))
    every = [one.keeping("ffn", dict(zip(one.bits, neurons, strict=True)))
             for one in everything(options) if one.ffn == 8
             for neurons in product((8, 4), repeat=len(one.bits))]  # fmt: skip
    fitting = [candidate for candidate in every if solver.cost(candidate, limit.price) <= limit.most]
    [(best, loss)] = solver.solve([limit], most=1, apart=1)
    assert best in fitting
    assert loss == pytest.approx(min(solver.cost(candidate, solver.loss) for candidate in fitting), rel=2 * GAP)
    assert loss == pytest.approx(solver.cost(best, solver.loss))


class Units:
    """A price by the heads and neurons of each block."""

    def __init__(self, seed: int, *, falls: bool) -> None:
        random = np.random.default_rng(seed)
        self.of = {place: random.uniform(0.1, 1, 2) * (-1 if falls else 1) for place in PLACES}

    def base(self, widths: Mapping[str, int]) -> float:
        return 0.0

    def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
        return float(self.of[place] @ [widths["heads"] / 2, widths["ffn"] / 8])

    def removed(self, place: Place) -> float:
        return 0.0


@pytest.mark.fast
@pytest.mark.parametrize("unlike", [["heads"], ["heads", "ffn"]])
def test_the_best_of_all_numbers_of_heads_block_by_block(unlike: list[str]) -> None:
    widths = {"heads": [2, 1], "ffn": [8, 4]}
    pairs = [{"heads": heads, "ffn": ffn} for heads, ffn in product(*widths.values())]
    options = replace(CHOICES, removable=frozenset(), widths=widths, combinations=pairs, bits=[8], unlike=unlike)
    solver, limit = Program(options, Units(0, falls=True)), Limit("disk_mb", 3.0, Units(1, falls=False))
    every = []
    for each in product(pairs, repeat=DEPTH):
        candidate = Candidate.of(each[0], dict.fromkeys(PLACES, 8))
        for name in widths:
            candidate = candidate.keeping(name, {p: own[name] for p, own in zip(PLACES, each, strict=True)})
        every += [candidate] if candidate.unlike.keys() <= set(unlike) else []
    fitting = [candidate for candidate in every if solver.cost(candidate, limit.price) <= limit.most]
    [(best, loss)] = solver.solve([limit], most=1, apart=1)
    assert best in fitting and "heads" in best.unlike
    assert loss == pytest.approx(min(solver.cost(candidate, solver.loss) for candidate in fitting), rel=2 * GAP)


class Scales(Linear):
    """A price of which scales are a part: the more groups, the dearer, and the better."""

    def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
        return super().block(place, widths, Precision(precision.bits)) * (1 + 2 / (precision.group_size or 8))


@pytest.mark.fast
def test_larger_groups_are_chosen_where_bytes_bind() -> None:
    options = replace(CHOICES, removable=frozenset(), widths={"ffn": [8]}, combinations=[{"ffn": 8}], bits=[8, 4],
                      group_sizes=[8, 32])  # fmt: skip

    class Coarse(Loss):
        def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
            return super().block(place, widths, precision) + 0.001 * (precision.group_size == 32)

    solver, price = Program(options, Coarse(losses(0))), Scales(0)
    every = [Candidate.of({"ffn": 8}, {}).rounded(dict(zip(PLACES, how, strict=True)))
             for how in product(options.precisions, repeat=DEPTH)]  # fmt: skip
    for most in (4.0, 2.4, 2.0):
        fitting = [candidate for candidate in every if solver.cost(candidate, price) <= most]
        [(best, loss)] = solver.solve([Limit("disk_mb", most, price)], most=1, apart=1)
        assert best in fitting
        assert loss == pytest.approx(min(solver.cost(candidate, solver.loss) for candidate in fitting), rel=2 * GAP)
        assert bool(best.group_sizes) == (most < 4)
    shared = Program(replace(options, one_width=True), Coarse(losses(0)))
    least = min(solver.cost(candidate, price) for candidate in every)
    [(best, _)] = shared.solve([Limit("disk_mb", least + 0.01, price)], most=1, apart=1)
    assert str(best) == "decoder 4444, ffn 8, group_size 32"


@pytest.mark.fast
def test_solutions_differ_by_more_than_bits_and_get_no_better() -> None:
    table, solver = losses(0), program(losses(0))
    limits = [Limit("disk_mb", 2.6, Linear(0))]
    found = solver.solve(limits, most=6, apart=2)
    values = [loss for _, loss in found]
    assert all(later >= earlier * (1 - 2 * GAP) for earlier, later in pairwise(values))
    structures = [(candidate.ffn, set(candidate.bits)) for candidate, _ in found]
    for number, (ffn, blocks) in enumerate(structures):
        for other, there in structures[:number]:
            assert ffn != other or len(blocks ^ there) >= 2
    fitting = [c for c in everything(CHOICES) if solver.cost(c, limits[0].price) <= 2.6]
    ranked = sorted(fitting, key=lambda c: total(table, c))
    second = next(c for c in ranked if c.ffn != found[0][0].ffn)
    assert any(loss == pytest.approx(total(table, second), rel=2 * GAP) for _, loss in found)
    assert values[0] == pytest.approx(total(table, ranked[0]), rel=2 * GAP)


@pytest.mark.fast
def test_where_bits_alone_are_chosen_solutions_differ_by_them() -> None:
    fixed = replace(CHOICES, removable=frozenset(), widths={"ffn": [8]}, combinations=[{"ffn": 8}], bits=[8, 4])
    found = program(losses(1), fixed).solve([Limit("disk_mb", 3.0, Linear(1))], most=3, apart=1)
    assert len({str(candidate) for candidate, _ in found}) == 3


@pytest.mark.fast
def test_one_width_for_all_that_is_rounded() -> None:
    shared = replace(CHOICES, bits=[8, 4], one_width=True)
    found = program(losses(2), shared).solve([Limit("disk_mb", 2.2, Linear(2))], most=4, apart=1)
    assert all(len(set(candidate.bits.values())) == 1 for candidate, _ in found)


@pytest.mark.fast
def test_a_budget_out_of_reach_names_the_nearest_and_what_binds() -> None:
    solver, price = program(losses(0)), Linear(0)
    least = min(solver.cost(candidate, price) for candidate in everything(CHOICES))
    with pytest.raises(Infeasible, match=r"what binds is budget\.disk_mb=.*The nearest: decoder") as error:
        solver.solve([Limit("disk_mb", least - 0.01, price), Limit("parameters", 50.0, Linear(3))], most=1, apart=1)
    assert error.value.costs["disk_mb"] == pytest.approx(least)
    assert "parameters=" not in str(error.value)


class Opposed(Linear):
    """A price that falls where the other rises: small models are dear."""

    def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
        return 1.0 - super().block(place, widths, precision) / 3


@pytest.mark.fast
def test_budgets_that_contradict_say_so() -> None:
    solver = program(losses(0), replace(CHOICES, removable=frozenset()))
    whole = [candidate for candidate in everything(CHOICES) if len(candidate.bits) == DEPTH]
    prices = {"disk_mb": Linear(0), "latency_ms": Opposed(0)}
    least = {name: min(solver.cost(candidate, price) for candidate in whole) for name, price in prices.items()}
    limits = [Limit(name, least[name] + 0.05, price) for name, price in prices.items()]
    for limit in limits:
        assert solver.solve([limit], most=1, apart=1)
    with pytest.raises(Infeasible, match="each of the budgets can be met alone, they contradict each other"):
        solver.solve(limits, most=1, apart=1)


@pytest.mark.fast
def test_a_solver_out_of_time_does_not_say_that_there_is_no_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = program(losses(0))
    ended = OptimizeResult(x=None, status=1, message="Time limit reached")
    monkeypatch.setattr(solve, "milp", lambda *_, **__: ended)
    limits = [Limit("disk_mb", 2.2, Linear(2))]
    for ask in (lambda: solver.hold(limits), lambda: solver.solve(limits, most=4, apart=1)):
        with pytest.raises(Undecided, match="cannot say that there is none"):
            ask()
