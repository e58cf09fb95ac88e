import pytest
import torch

from slimexp.quantizer.ternary import Ternary


@pytest.mark.fast
def test_three_levels_of_the_mean() -> None:
    x = torch.tensor([[0.1, -0.4, 1.0, -2.5]])  # mean of absolute values: 1
    assert Ternary(bits=2, group_size=None)(x).tolist() == [[0.0, 0.0, 1.0, -1.0]]


@pytest.mark.fast
def test_it_is_of_two_bits_and_symmetric() -> None:
    with pytest.raises(ValueError, match="Ternary: bits must be 2, got 4"):
        Ternary(bits=4, group_size=None)
    with pytest.raises(ValueError, match="Ternary is symmetric"):
        Ternary(bits=2, group_size=None, symmetric=False)
