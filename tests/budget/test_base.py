"""The contract of every budget under conf/."""

from collections.abc import Callable
from typing import Any

import pytest

from slimexp.budget.base import Budget, SearchSpace
from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR, compose
from slimexp.cut.ranking import Ranking, rank
from slimexp.cut.remove import remove
from slimexp.cut.shape import ParameterCounter, axes_of, lattice

FILES = sorted(path.stem for path in (CONF_DIR / "budget").glob("*.yaml"))
SETTINGS = {"disk": ["+measure.probe.megabytes=1"], "latency": ["measure.probe.pairs=2"]}


def budget(name: str, *overrides: str) -> Budget:
    lines = [line.removeprefix("+") for line in SETTINGS.get(name, [])]
    return build(compose([f"+budget@measure.probe={name}", *lines, *overrides]).measure.probe)


@pytest.fixture
def space(tiny: Callable[..., Any]) -> SearchSpace:
    family = tiny("causal_lm")
    ranking: Ranking = rank(
        family,
        build(compose(["+importance@measure.probe=magnitude"]).measure.probe),
        norm=2,
        widths=["heads", "ffn", "hidden"],
        batches=lambda rows: [family.encode([("one", None, None)])],
        rows=1,
        objective=lambda batch: family.forward(batch)[0].sum(),
    )
    counter = ParameterCounter(family.model)
    return SearchSpace(
        family=family,
        lattice=lattice(family.model.config, axes_of(family.model.config), multiple=8),
        count=lambda shape: counter.count(ranking.layers(shape), shape),
        build=lambda shape: remove(family, ranking.layers(shape), ranking.retained(shape)),
    )


@pytest.mark.parametrize("name", FILES)
def test_every_unit_costs_something(name: str, space: SearchSpace) -> None:
    probe = budget(name)
    cost = probe.cost(space)
    for key, options in space.lattice.items():
        assert cost({**space.whole, key: options[-1]}) <= cost(space.whole)
    assert probe.limit > 0 and probe.unit
