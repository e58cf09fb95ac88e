"""Bits per layer: the optimum under the bytes of one width for all."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from slimexp.allocation.mixed_precision import MixedPrecision
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.quantizer.minmax import MinMax

ALLOCATION = "+allocation@pipeline.quantize.allocation=mixed_precision"


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
        quantizer=lambda _, bits: MinMax(bits=bits, group_size=None),
        cost=lambda: float((weight - before).square().sum()),
    )
    assert torch.equal(weight, before)
    assert costs["layer"][0] > costs["layer"][1] > costs["layer"][2] > 0


@pytest.mark.fast
def test_a_cost_that_is_no_number_names_the_layer() -> None:
    with pytest.raises(ValueError, match=r"layer 'a': rounded by itself it costs \[nan, nan\] at \[2, 4\] bits"):
        MixedPrecision(rows=1, widths=[2, 4]).scan(
            {"a": torch.ones(2, 2)},
            quantizer=lambda _, bits: MinMax(bits=bits, group_size=None),
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
