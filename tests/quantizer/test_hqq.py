import pytest
import torch

from slimexp.quantizer.hqq import Hqq
from slimexp.quantizer.minmax import MinMax

WEIGHT = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) ** 3  # heavy tails


@pytest.mark.fast
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_less_error_in_its_norm_than_min_max(bits: int, symmetric: bool) -> None:
    settings = {"bits": bits, "group_size": 16, "symmetric": symmetric}
    ours = Hqq(**settings, rounds=20, power=0.7, beta=10.0)(WEIGHT)
    errors = [(values - WEIGHT).abs().pow(0.7).sum() for values in (ours, MinMax(**settings)(WEIGHT))]
    assert errors[0] < 0.99 * errors[1]


@pytest.mark.fast
@pytest.mark.parametrize(("setting", "value"), [("rounds", 0), ("power", 1.0), ("beta", 0.0)])
def test_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be"):
        Hqq(bits=4, group_size=None, **({"rounds": 20, "power": 0.7, "beta": 10.0} | {setting: value}))
