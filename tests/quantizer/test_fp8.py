import pytest
import torch

from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.minmax import MinMax

WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.fast
@pytest.mark.parametrize("group_size", [None, 16, "tensor"])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_quantizing_twice_changes_nothing_and_the_largest_entry_is_the_largest_number(
    group_size: int | str | None, size: float
) -> None:
    quantizer = Fp8(bits=8, group_size=group_size)
    once = quantizer(WEIGHT * size)
    assert torch.equal(quantizer(once), once)
    numbers = quantizer.integers(once, quantizer.grid(once)).float()
    assert (quantizer.granularity.split(numbers).abs().amax(-1) == 448).all()


@pytest.mark.fast
def test_an_outlier_costs_small_entries_less_than_on_integers() -> None:
    x = WEIGHT.clone()
    x[:, 0] = 100
    errors = [(kind(bits=8, group_size=None)(x) - x)[:, 1:].norm() for kind in (Fp8, MinMax)]
    assert errors[0] < 0.2 * errors[1]


@pytest.mark.fast
def test_what_is_beyond_a_frozen_grid_is_clipped_and_no_nan() -> None:
    quantizer = Fp8(bits=8, group_size=None)
    quantizer.freeze(WEIGHT)
    assert torch.equal(quantizer(1e6 * WEIGHT).abs(), 448 * quantizer.scale.expand(64, 64))


@pytest.mark.fast
def test_there_is_no_other_width_and_no_zero_point() -> None:
    with pytest.raises(ValueError, match="Fp8: bits must be 8, got 4"):
        Fp8(bits=4, group_size=None)
    with pytest.raises(ValueError, match="Fp8 is symmetric"):
        Fp8(bits=8, group_size=None, symmetric=False)
