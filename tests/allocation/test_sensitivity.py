"""Sparsities per layer: the lower hull of each layer's loss, and the optimum of a separable loss under a target."""

import pytest
import torch

from slimexp.allocation.sensitivity import SensitivityAllocation, lower_hull
from slimexp.weight.mask import Mask

pytestmark = pytest.mark.fast
GRID = [0.3, 0.5, 0.7, 0.9]


def shares(growth: dict[str, list[float]], sizes: dict[str, int], target: float) -> dict[str, float]:
    return SensitivityAllocation(rows=1, sparsities=GRID).shares(growth, sizes, target)


def test_the_hull_lies_below_and_rises() -> None:
    pieces = list(lower_hull(GRID, [0.3, 0.2, 0.9, 1.0]))  # the first point lies above the line to the second
    assert [(start, end) for _, start, end in pieces] == [(0.0, 0.5), (0.5, 0.9)]
    assert [slope for slope, _, _ in pieces] == [pytest.approx(0.3 / 0.5), pytest.approx(0.7 / 0.4)]


def test_layers_that_mind_less_get_more() -> None:
    allocated = shares({"a": [0.1, 0.2, 0.4, 0.9], "b": [1, 2, 4, 9], "c": [0.01, 0.02, 0.04, 0.09]},
                   dict.fromkeys("abc", 1000), 0.5)  # fmt: skip
    assert allocated["b"] < allocated["a"] < allocated["c"] == 0.9
    assert sum(allocated.values()) == pytest.approx(1.5)


def test_like_layers_differ_by_no_more_than_a_piece_and_a_large_one_counts_by_weight() -> None:
    """A loss that grows alike in a layer of ten times the weights costs a tenth per weight."""
    allocated = shares(
        {"small": [0.1, 0.2, 0.4, 0.9], "large": [0.1, 0.2, 0.4, 0.9]}, {"small": 100, "large": 1000}, 0.5
    )
    assert allocated["large"] > allocated["small"]


@pytest.mark.parametrize("target", [0.0, 0.123, 0.5, 0.9])
def test_the_target_is_met_to_the_weight(target: float) -> None:
    sizes = {"a": 1001, "b": 77, "c": 4096}
    allocated = shares({"a": [0.1, 0.2, 0.4, 0.9], "b": [0, 0, 0, 0], "c": [-0.1, 0.0, 0.5, 0.3]}, sizes, target)
    assert sum(round(share * sizes[name]) for name, share in allocated.items()) == pytest.approx(
        target * sum(sizes.values()), abs=2
    )
    assert max(allocated.values()) <= 0.9 + 1 / 77


def test_a_separable_loss_is_minimal_by_brute_force() -> None:
    growth, sizes = {"a": [0.1, 0.2, 0.4, 0.9], "b": [0.2, 0.25, 0.6, 2.0]}, {"a": 10, "b": 10}
    allocated = shares(growth, sizes, 0.5)

    def at(name: str, share: float) -> float:
        for slope, start, end in lower_hull(GRID, growth[name]):
            if share <= end + 1e-9:
                return below(name, start) + slope * (share - start)
        return float("inf")

    def below(name: str, share: float) -> float:
        return sum(slope * (end - start) for slope, start, end in lower_hull(GRID, growth[name]) if end <= share + 1e-9)

    best = min(at("a", zeros / 10) + at("b", 1 - zeros / 10) for zeros in range(1, 10))
    assert at("a", allocated["a"]) + at("b", allocated["b"]) == pytest.approx(best)


def test_the_scan_measures_growth_and_puts_masks_back() -> None:
    """The loss counts zeros, so that it grows by their number; a mask that was there already counts as dense."""
    masks = {name: Mask(shape=(2, 10)) for name in "ab"}
    masks["a"].mask[0, 0] = False
    before = {name: mask.mask.clone() for name, mask in masks.items()}

    def keep(name: str, sparsity: float) -> torch.Tensor:
        kept = before[name].clone()
        kept.view(-1)[1 : 1 + round(20 * sparsity)] = False
        return kept

    scanned = SensitivityAllocation(rows=1, sparsities=[0.3, 0.5]).scan(
        masks, keep=keep, loss=lambda: float(sum((~mask.mask).sum() for mask in masks.values()))
    )
    assert scanned == {"a": [6.0, 10.0], "b": [6.0, 10.0]}
    assert all(torch.equal(mask.mask, before[name]) for name, mask in masks.items())


@pytest.mark.parametrize("sparsities", [[], [0.5, 0.3], [0.0, 0.5], [0.5, 1.0]])
def test_wrong_sparsities(sparsities: list[float]) -> None:
    with pytest.raises(ValueError, match=r"sparsities must ascend within \(0, 1\), got"):
        SensitivityAllocation(rows=1, sparsities=sparsities)
