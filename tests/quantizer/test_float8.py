import pytest
import torch

from slimexp.quantizer.fp8 import Fp8


@pytest.mark.fast
def test_the_nearest_numbers_are_those_of_torch_and_larger_ones_are_clipped() -> None:
    quantizer = Fp8(bits=8, group_size=None)
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()]
    assert torch.equal(quantizer.nearest(numbers), numbers)
    assert quantizer.nearest(torch.tensor([449.0, -1e9, 17.0])).tolist() == [448.0, -448.0, 16.0]  # 17: 16 or 18


@pytest.mark.fast
def test_other_widths_and_zero_points_do_not_exist() -> None:
    with pytest.raises(ValueError, match="Fp8: bits must be 8, got 4"):
        Fp8(bits=4, group_size=None)
    with pytest.raises(ValueError, match="Fp8 is symmetric: set symmetric=true, or choose another quantizer"):
        Fp8(bits=8, group_size=None, symmetric=False)
