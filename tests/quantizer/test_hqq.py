from typing import Any

import pytest
import torch

from slimexp.quantizer.hqq import Hqq
from slimexp.quantizer.minmax import MinMax

SETTINGS: dict[str, Any] = {"turns": 20, "norm": 0.7, "penalty": 20.0, "growth": 1.01}
WEIGHT = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.fast
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 16, "tensor"])
def test_no_group_errs_more_than_under_min_max_in_its_norm(
    bits: int, symmetric: bool, group_size: int | str | None
) -> None:
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    quantizers = (Hqq(**settings, **SETTINGS), MinMax(**settings))
    norms = [q.granularity.split(q(WEIGHT) - WEIGHT).abs().pow(0.7).sum(-1) for q in quantizers]
    assert (norms[0] <= norms[1] * (1 + 1e-5)).all()
    assert norms[0].sum() < norms[1].sum()


@pytest.mark.fast
def test_an_outlier_does_not_stretch_the_grid_of_the_others() -> None:
    x = WEIGHT.clone()
    x[:, 0] = 5
    settings = {"bits": 3, "group_size": None}
    errors = [(q(x) - x)[:, 1:].abs().mean() for q in (Hqq(**settings, **SETTINGS), MinMax(**settings))]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.fast
def test_scales_do_not_depend_on_the_unit_of_the_weights() -> None:
    quantizer = Hqq(bits=4, group_size=16, **SETTINGS)
    assert torch.equal(quantizer(WEIGHT * 2**-10), quantizer(WEIGHT) * 2**-10)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": 0}, "turns must be >= 1, got 0"),
        ({"norm": 1.5}, r"norm must be in \(0, 1\], got 1.5"),
        ({"penalty": 0.0}, "penalty must be > 0 and growth >= 1, got 0.0 and 1.01"),
    ],
)
def test_out_of_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hqq(bits=4, group_size=None, **SETTINGS | change)
