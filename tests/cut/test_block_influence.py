import pytest
import torch

from slimexp.cut.block_influence import block_influence


@pytest.mark.fast
def test_a_block_that_changes_no_direction_has_none() -> None:
    stream = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert block_influence(stream, 3 * stream).abs() < 1e-5
    torch.testing.assert_close(block_influence(stream, -stream), torch.tensor(20.0))


@pytest.mark.fast
def test_against_a_float64_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 3, 4, 8, generator=generator)
    x, y = before.double().numpy().reshape(-1, 8), after.double().numpy().reshape(-1, 8)
    cosine = (x * y).sum(1) / ((x**2).sum(1) * (y**2).sum(1)) ** 0.5
    assert block_influence(before, after).item() == pytest.approx((1 - cosine).sum(), rel=1e-5)


@pytest.mark.fast
def test_half_precision_is_compared_in_full() -> None:
    stream = torch.full((1, 64), 300.0, dtype=torch.float16)  # the square is beyond float16
    assert block_influence(stream, stream).item() == pytest.approx(0, abs=1e-6)
