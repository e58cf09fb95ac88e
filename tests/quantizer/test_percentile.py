import pytest
import torch

from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.percentile import Percentile

X = torch.arange(1.0, 102.0).flip(0)[None]  # 101 .. 1


@pytest.mark.fast
def test_symmetric_clips_the_largest() -> None:
    grid = Percentile(bits=8, group_size=None, percentile=90).grid(X)
    assert grid.scale.item() * 127 == pytest.approx(91, rel=0.01)


@pytest.mark.fast
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 16, "tensor"])
def test_all_entries_are_min_max(bits: int, group_size: int | str | None) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    grids = [
        quantizer.grid(x)
        for quantizer in (
            Percentile(bits=bits, group_size=group_size, percentile=100),
            MinMax(bits=bits, group_size=group_size),
        )
    ]
    assert torch.equal(grids[0].scale, grids[1].scale)


@pytest.mark.fast
def test_affine_clips_both_ends_alike() -> None:
    grid = Percentile(bits=8, group_size=None, symmetric=False, percentile=90).grid(X - 51)
    assert grid.scale.item() * 255 == pytest.approx(90, rel=0.01)


@pytest.mark.fast
def test_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"percentile must be in \(50, 100\], got 40"):
        Percentile(bits=8, group_size=None, percentile=40)
