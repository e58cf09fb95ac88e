import pytest
import torch

from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.mse import Mse

WEIGHT = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.fast
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_row_is_worse_than_under_min_max_and_most_are_better(bits: int, symmetric: bool) -> None:
    settings = {"bits": bits, "group_size": 16, "symmetric": symmetric}
    errors = [
        (quantizer(WEIGHT) - WEIGHT).unflatten(-1, (-1, 16)).square().sum(-1)
        for quantizer in (Mse(**settings, candidates=20, smallest=0.4), MinMax(**settings))
    ]
    assert (errors[0] <= errors[1]).all()
    assert errors[0].sum() < 0.99 * errors[1].sum()


@pytest.mark.fast
def test_out_of_range() -> None:
    with pytest.raises(ValueError, match="candidates must be >= 1"):
        Mse(bits=4, group_size=None, candidates=0, smallest=0.5)
    with pytest.raises(ValueError, match=r"smallest must be in \(0, 1\]"):
        Mse(bits=4, group_size=None, candidates=2, smallest=0)
