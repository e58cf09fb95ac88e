import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from slimexp.sweeper.space import Space

pytestmark = pytest.mark.fast


def test_what_has_several_values_is_swept() -> None:
    space = Space.parse(["+experiment=chain_t5", "a.b=0.25,0.5", "model=x,y", "+new=[1,2],[3]", "seed=1"])
    assert space.fixed == ("+experiment=chain_t5", "seed=1")
    assert space.swept == {
        "a.b": CategoricalDistribution(["0.25", "0.5"]),
        "model": CategoricalDistribution(["x", "y"]),
        "+new": CategoricalDistribution(["[1,2]", "[3]"]),
    }
    assert space.size == 8
    assert space.overrides({"a.b": "0.5", "+new": "[3]"}) == ["+experiment=chain_t5", "seed=1", "a.b=0.5", "+new=[3]"]


def test_a_grid_is_every_combination_once() -> None:
    rows = list(Space.parse(["a=1,2", "b=range(1,4)"]).grid())
    assert len(rows) == 6 == len({tuple(row.items()) for row in rows})
    assert rows[:4] == [{"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "2", "b": "1"}]


def test_a_range_keeps_every_digit() -> None:
    assert Space.parse(["seed=range(1234567,1234570)"]).swept == {
        "seed": CategoricalDistribution(["1234567", "1234568", "1234569"])
    }
    assert Space.parse(["a=range(0,0.35,0.1)"]).swept == {"a": CategoricalDistribution(["0", "0.1", "0.2", "0.3"])}


def test_intervals() -> None:
    space = Space.parse(["a=interval(0,0.9)", "b=int(interval(2,8))", "c=tag(log, interval(1e-5,1e-2))"])
    assert space.swept == {
        "a": FloatDistribution(0, 0.9),
        "b": IntDistribution(2, 8),
        "c": FloatDistribution(1e-5, 1e-2, log=True),
    }
    assert space.size is None
    with pytest.raises(ValueError, match=r"^a has an interval, which a grid cannot go through"):
        list(space.grid())
    assert Space.parse(["b=int(interval(2,8))"]).size == 7


def test_singles_hold_every_value() -> None:
    rows = list(Space.parse(["a=1,2,3", "b=x,y", "c=interval(0,0.5)"]).singles())
    assert {row["a"] for row in rows} == {"1", "2", "3"} and {row["b"] for row in rows} == {"x", "y"}
    assert {row["c"] for row in rows} == {0, 0.5}
    assert len(rows) == 1 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "nothing is swept: give a key several values"),
        (["a=interval(0.9,0.1)"], r"a needs an interval with low < high, got interval\(0\.9,0\.1\)"),
        (["a=tag(log, interval(0.0,0.1))"], "a needs an interval with 0 < low < high"),
        (["a=range(3,3)"], "a goes through nothing"),
        (["a=1,2,1"], "a has 1 twice"),
        (["a=1,2", "a=3"], "a is given more than once"),
        (["a=1,2", "+a=3,4"], "a is given more than once"),
        (["a=glob(*)"], r"a=glob\(...\) is not taken here"),
    ],
)
def test_what_cannot_be_is_said(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space.parse(overrides)
