import pytest
import torch

from slimexp.quantizer.minmax import MinMax

WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.fast
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_quantizing_twice_changes_nothing(bits: int, group_size: int | None, size: float) -> None:
    quantizer = MinMax(bits=bits, group_size=group_size)
    once = quantizer(WEIGHT * size)
    assert torch.equal(quantizer(once), once)


@pytest.mark.fast
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_entry_is_the_largest_integer(bits: int) -> None:
    quantizer = MinMax(bits=bits, group_size=None)
    integers = quantizer(WEIGHT) / quantizer.grid(WEIGHT).scale
    assert (integers.abs().amax(1) == max(map(abs, quantizer.limits))).all()


@pytest.mark.fast
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_up_to_4_bits_the_grid_is_one_of_bfloat16_numbers(bits: int) -> None:
    values = MinMax(bits=bits, group_size=16)(WEIGHT)
    assert torch.equal(values.bfloat16().float(), values)


@pytest.mark.fast
@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_the_scale_costs_next_to_nothing(bits: int) -> None:
    quantizer = MinMax(bits=bits, group_size=16)
    groups = quantizer.granularity.split(WEIGHT)
    low, high = quantizer.limits
    scale = groups.abs().amax(-1, keepdim=True) / -low * quantizer.grid(WEIGHT).scale.unsqueeze(-1).sign()
    exact = ((groups / scale).round().clamp(low, high) * scale).flatten(-2)
    assert (quantizer(WEIGHT) - WEIGHT).norm() < 1.02 * (exact - WEIGHT).norm()
