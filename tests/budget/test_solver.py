from collections.abc import Callable, Mapping
from itertools import product

import pytest

from slimexp.budget.solver import Unreachable, describe, solve
from slimexp.cut.shape import Shape

LATTICE = {"decoder": [6, 5, 4, 3, 2, 1], "ffn": [64, 48, 32, 16], "hidden": [32, 24, 16, 8]}
WORTH: Mapping[str, float] = {"decoder": 4.0, "ffn": 1.0, "hidden": 9.0}


def cost(shape: Shape) -> float:
    return shape["hidden"] * (100 + shape["decoder"] * (3 * shape["ffn"] + 4 * shape["hidden"]))


def loss(shape: Shape) -> float:
    """Worse than the sum of its parts."""
    parts = [worth * (LATTICE[key][0] / shape[key] - 1) for key, worth in WORTH.items()]
    return sum(parts) + 0.1 * max(parts) * min(parts)


WHOLE = {key: options[0] for key, options in LATTICE.items()}
EVERY = [dict(zip(LATTICE, units, strict=True)) for units in product(*LATTICE.values())]


@pytest.mark.fast
@pytest.mark.parametrize("share", [0.9, 0.75, 0.5, 0.25])
def test_no_shape_that_fits_loses_less(share: float) -> None:
    limit = share * cost(WHOLE)
    found = solve(LATTICE, cost=cost, limit=limit, loss=loss, candidates=8)
    assert cost(found) <= limit
    assert loss(found) == min(loss(shape) for shape in EVERY if cost(shape) <= limit)


@pytest.mark.fast
def test_few_losses_are_taken() -> None:
    taken = []
    solve(LATTICE, cost=cost, limit=0.75 * cost(WHOLE), loss=lambda s: taken.append(s) or loss(s), candidates=3)
    assert len(taken) <= 1 + sum(map(len, LATTICE.values())) - len(LATTICE) + 3


@pytest.mark.fast
def test_one_axis_alone_takes_no_losses() -> None:
    """The budget decides; a size that no model has is passed over."""
    alone = {key: options if key == "ffn" else options[:1] for key, options in LATTICE.items()}

    def find(share: float, allowed: Callable[[Shape], bool] = lambda _: True) -> Shape:
        return solve(alone, cost=cost, limit=share * cost(WHOLE), loss=lambda _: 1 / 0, candidates=3, allowed=allowed)

    assert find(0.9) == WHOLE | {"ffn": 48} and find(1.0) == WHOLE
    assert find(0.9, lambda shape: shape["ffn"] != 48) == WHOLE | {"ffn": 32}
    for share, allowed in ((0.1, lambda _: True), (0.9, lambda shape: shape["ffn"] == 64)):
        with pytest.raises(Unreachable, match="the least that can be had"):
            find(share, allowed)


@pytest.mark.fast
def test_no_more_goes_than_must() -> None:
    """Not even where a smaller model loses less, as one that has learned nothing does."""
    limit = 0.75 * cost(WHOLE)
    found = solve(LATTICE, cost=cost, limit=limit, loss=cost, candidates=8)
    larger = [shape for shape in EVERY if all(shape[key] >= units for key, units in found.items()) and shape != found]
    assert all(cost(shape) > limit for shape in larger)


@pytest.mark.fast
def test_what_is_not_allowed_is_not_found() -> None:
    limit = 0.5 * cost(WHOLE)
    free = solve(LATTICE, cost=cost, limit=limit, loss=loss, candidates=8)
    found = solve(LATTICE, cost=cost, limit=limit, loss=loss, candidates=8, allowed=lambda s: s["ffn"] != free["ffn"])
    assert found["ffn"] != free["ffn"] and cost(found) <= limit


@pytest.mark.fast
def test_the_nearest_is_named_where_nothing_fits() -> None:
    with pytest.raises(Unreachable, match=r"the least that can be had is 1440: decoder 1, ffn 16, hidden 8"):
        solve(LATTICE, cost=cost, limit=1439, loss=loss, candidates=8)


@pytest.mark.fast
def test_a_shape_in_words() -> None:
    assert describe({"decoder": 3, "ffn": 64}) == "decoder 3, ffn 64"
