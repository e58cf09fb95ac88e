"""Sparsities and bits per layer: the optimum of a separable loss under a budget."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from slimexp.allocation.mixed_precision import MixedPrecision
from slimexp.allocation.sensitivity import SensitivityAllocation, _hull
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.format.pack import pack
from slimexp.quantizer.minmax import MinMax

ALLOCATION = "+allocation@pipeline.quantize.allocation=mixed_precision"
GRID = [0.3, 0.5, 0.7, 0.9]


def shares(growth: dict[str, list[float]], sizes: dict[str, int], target: float) -> dict[str, float]:
    return SensitivityAllocation(rows=1, sparsities=GRID).shares(growth, sizes, target)


@pytest.mark.fast
def test_the_hull_lies_below_and_rises() -> None:
    pieces = list(_hull(GRID, [0.3, 0.2, 0.9, 1.0]))  # the first point lies above the line to the second
    assert [(start, end) for _, start, end in pieces] == [(0.0, 0.5), (0.5, 0.9)]
    assert [slope for slope, _, _ in pieces] == [pytest.approx(0.3 / 0.5), pytest.approx(0.7 / 0.4)]


@pytest.mark.fast
def test_layers_that_mind_less_get_more() -> None:
    given = shares({"a": [0.1, 0.2, 0.4, 0.9], "b": [1, 2, 4, 9], "c": [0.01, 0.02, 0.04, 0.09]},
                   dict.fromkeys("abc", 1000), 0.5)  # fmt: skip
    assert given["b"] < given["a"] < given["c"] == 0.9
    assert sum(given.values()) == pytest.approx(1.5)


@pytest.mark.fast
def test_like_layers_differ_by_no_more_than_a_piece_and_a_large_one_counts_by_weight() -> None:
    """A loss that grows alike in a layer of ten times the weights costs a tenth per weight."""
    given = shares({"small": [0.1, 0.2, 0.4, 0.9], "large": [0.1, 0.2, 0.4, 0.9]}, {"small": 100, "large": 1000}, 0.5)
    assert given["large"] > given["small"]


@pytest.mark.fast
@pytest.mark.parametrize("target", [0.0, 0.123, 0.5, 0.9])
def test_the_target_is_met_to_the_weight(target: float) -> None:
    sizes = {"a": 1001, "b": 77, "c": 4096}
    given = shares({"a": [0.1, 0.2, 0.4, 0.9], "b": [0, 0, 0, 0], "c": [-0.1, 0.0, 0.5, 0.3]}, sizes, target)
    assert sum(round(share * sizes[name]) for name, share in given.items()) == pytest.approx(
        target * sum(sizes.values()), abs=2
    )
    assert max(given.values()) <= 0.9 + 1 / 77


@pytest.mark.fast
def test_a_separable_loss_is_minimal_by_brute_force() -> None:
    growth, sizes = {"a": [0.1, 0.2, 0.4, 0.9], "b": [0.2, 0.25, 0.6, 2.0]}, {"a": 10, "b": 10}
    given = shares(growth, sizes, 0.5)

    def at(name: str, share: float) -> float:
        for slope, start, end in _hull(GRID, growth[name]):
            if share <= end + 1e-9:
                return below(name, start) + slope * (share - start)
        return float("inf")

    def below(name: str, share: float) -> float:
        return sum(slope * (end - start) for slope, start, end in _hull(GRID, growth[name]) if end <= share + 1e-9)

    best = min(at("a", zeros / 10) + at("b", 1 - zeros / 10) for zeros in range(1, 10))
    assert at("a", given["a"]) + at("b", given["b"]) == pytest.approx(best)


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_exact_against_all_choices(seed: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    allocation = MixedPrecision(rows=1, widths=[2, 4, 8])
    sizes = {name: int(random.integers(1, 9)) for name in "abcde"}
    costs = {name: sorted(1e-6 * random.random(3), reverse=True) for name in sizes}  # smaller than a solver's tolerance
    stored = {
        name: {width: size * width + (2 if width > 4 else 1) for width in (2, 3, 4, 5, 8)}
        for name, size in sizes.items()
    }
    chosen = allocation.choose(costs, stored, budget := sum(taken[bits] for taken in stored.values()))
    column = {width: i for i, width in enumerate(allocation.widths)}

    def total(widths: dict[str, int]) -> float:
        return sum(costs[name][column[width]] for name, width in widths.items())

    def taken(widths: dict[str, int]) -> int:
        return sum(stored[name][width] for name, width in widths.items())

    choices = [dict(zip(sizes, choice, strict=True)) for choice in product(allocation.widths, repeat=5)]
    fitting = [widths for widths in choices if taken(widths) <= budget]
    assert chosen in fitting
    assert total(chosen) == pytest.approx(min(map(total, fitting)), rel=1e-6, abs=0)


@pytest.mark.fast
def test_the_scan_puts_weights_back() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    costs = MixedPrecision(rows=1, widths=[2, 4, 8]).scan(
        {"layer": weight},
        quantizer=lambda bits: MinMax(bits=bits, group_size=None),
        cost=lambda: float((weight - before).square().sum()),
    )
    assert torch.equal(weight, before)
    assert costs["layer"][0] > costs["layer"][1] > costs["layer"][2] > 0


def test_layers_differ_and_pack(tiny: Callable[..., Any], corpus: Callable[..., Any], technique: Any) -> None:
    rows = "pipeline.quantize.allocation.rows=4"
    stage = technique("quantize", ALLOCATION, rows, bits=4, group_size=8, activation_bits=None)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    reached = stage.finish()
    widths = {name: quantizer.bits for name, quantizer in stage.on_weights.items()}
    assert len(set(widths.values())) > 1
    assert reached["bits"] <= 4
    assert {f"bits/{name}": float(width) for name, width in widths.items()}.items() <= reached.items()
    costs = {bits: [reached[f"rounded_to_{bits}_nats/{name}"] for name in widths] for bits in (2, 8)}
    assert sum(costs[2]) > sum(costs[8]) and min(costs[8]) >= 0
    state, _ = pack(stage.model)
    taken = sum(tensor.nbytes for key, tensor in state.items() if key.endswith(("weight_packed", "weight_scale")))
    ones = technique("quantize", bits=4, group_size=8, activation_bits=None)
    ones.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    state, _ = pack(ones.model)
    assert taken <= sum(
        tensor.nbytes for key, tensor in state.items() if key.endswith(("weight_packed", "weight_scale"))
    )


@pytest.mark.fast
def test_a_cost_that_is_no_number_names_the_layer() -> None:
    with pytest.raises(ValueError, match=r"layer 'a': rounded by itself it costs \[nan, nan\] at \[2, 4\] bits"):
        MixedPrecision(rows=1, widths=[2, 4]).scan(
            {"a": torch.ones(2, 2)},
            quantizer=lambda bits: MinMax(bits=bits, group_size=None),
            cost=lambda: float("nan"),
        )


def test_better_than_one_width_for_all_of_the_same_bytes(technique: Any) -> None:
    """Three bits in the second block of the shipped Llama; held-out text."""
    cfg = compose(["model=llama_python_source", "data=python_source"])
    text, source = build(cfg.data), build(cfg.model)
    rows = [(row.source, row.target, row.label) for row in text.splits["validation"][:6]]
    mixed = [ALLOCATION, "pipeline.quantize.allocation.rows=1", "pipeline.quantize.allocation.widths=[2,3,4]"]
    losses = {}
    for name, overrides in (("one", []), ("mixed", mixed)):
        family = source.load(task=text.task, texts=lambda: [], labels=())
        settings = {"include": "[model.layers.1.*]", "min_coverage": 0.01, "bits": 3, "group_size": 64}
        stage = technique("quantize", *overrides, activation_bits=None, **settings)
        stage.prepare(family, text, None)
        assert stage.finish()["bits"] <= 3
        batch = family.encode(rows)
        with torch.no_grad():
            answers = family.forward(batch)[0].flatten(0, 1)
        losses[name] = float(torch.nn.functional.cross_entropy(answers, batch["labels"].flatten()))
    assert losses["mixed"] < losses["one"]


@pytest.mark.fast
@pytest.mark.parametrize("widths", [[4], [4, 2], [1, 4], [2, 9]])
def test_wrong_widths(widths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"allocation\.widths must be two or more, ascending, within 2 to 8"):
        MixedPrecision(rows=1, widths=widths)


def test_an_allocation_of_sparsities(technique: Any) -> None:
    with pytest.raises(ValueError, match=r"allocation must be mixed_precision or null .*, got Sensitivity"):
        technique("quantize", "+allocation@pipeline.quantize.allocation=sensitivity")


def test_a_budget_below_the_least_width(technique: Any) -> None:
    with pytest.raises(ValueError, match=r"bits=2 is less than the first of allocation\.widths, 3"):
        technique("quantize", ALLOCATION, "pipeline.quantize.allocation.widths=[3,8]", bits=2, activation_bits=None)
