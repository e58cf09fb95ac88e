import pytest
import torch

from slimexp.quantizer.cached import Cached

X = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.mark.fast
@pytest.mark.parametrize("bits", [8, 4])
def test_a_grid_per_head_and_token(bits: int) -> None:
    quantizer = Cached(bits=bits, group_size=None, symmetric=False)
    grid = quantizer.fitted(X)
    assert grid.scale.shape == grid.zero.shape == (2, 3, 5, 1)
    assert torch.equal(grid.scale, grid.scale.bfloat16().float())
    alone = quantizer.fitted(X[:1, 1:2, 3:4])
    assert torch.equal(alone.scale, grid.scale[:1, 1:2, 3:4])
    error = (quantizer(X) - X).abs() / grid.scale
    assert error.max() < 1.05  # half a step, the zero point's rounding and that of the scale


@pytest.mark.fast
def test_other_widths() -> None:
    with pytest.raises(ValueError, match="bits must be 4 or 8, got"):
        Cached(bits=6, group_size=None)
