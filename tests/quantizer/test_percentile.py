import pytest
import torch

from slimexp.quantizer.percentile import Percentile

X = torch.arange(1.0, 102.0).flip(0)[None]  # 101 .. 1


@pytest.mark.fast
def test_symmetric_clips_the_largest() -> None:
    grid = Percentile(bits=8, group_size=None, percentile=90).grid(X)
    assert grid.scale.item() * 127 == pytest.approx(91, rel=0.01)


@pytest.mark.fast
def test_affine_clips_both_ends_alike() -> None:
    grid = Percentile(bits=8, group_size=None, symmetric=False, percentile=90).grid(X - 51)
    assert grid.scale.item() * 255 == pytest.approx(90, rel=0.01)


@pytest.mark.fast
def test_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"percentile must be in \(50, 100\], got 40"):
        Percentile(bits=8, group_size=None, percentile=40)
