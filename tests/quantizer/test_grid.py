import pytest
import torch

from slimexp.quantizer.grid import Granularity, Grid, rounded

WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("group_size", "shape", "groups"),
    [
        (None, (6, 32), (6, 1, 32)),
        (8, (6, 32), (6, 4, 8)),
        (None, (2, 6, 32), (2, 6, 1, 32)),
        ("tensor", (2, 6, 32), (1, 384)),
    ],
)
def test_entries_that_share_a_scale_lie_along_the_last_dimension(
    group_size: int | str | None, shape: tuple[int, ...], groups: tuple[int, ...]
) -> None:
    x = torch.arange(384.0)[: torch.Size(shape).numel()].view(shape)
    split = Granularity(group_size).split(x)
    assert split.shape == groups and torch.equal(split.flatten(), x.flatten())


@pytest.mark.fast
def test_group_size_must_divide_the_row() -> None:
    with pytest.raises(ValueError, match="group_size must divide the length of a row, got 5 for rows of 32"):
        Granularity(5).split(torch.zeros(2, 6, 32))
    for wrong in (0, "row", 2.5):
        with pytest.raises(ValueError, match=f"group_size must be >= 1, .* or tensor for one in all, got {wrong}"):
            Granularity(wrong)


@pytest.mark.fast
def test_two_grids_are_combined_scale_by_scale() -> None:
    first = Grid(torch.tensor([[1.0], [2.0]]), torch.tensor([[3], [4]]))
    second = Grid(torch.tensor([[10.0], [20.0]]), torch.tensor([[30], [40]]))
    combined = first.where(torch.tensor([[True], [False]]), second)
    assert combined.scale.tolist() == [[1.0], [20.0]] and combined.zero is not None
    assert combined.zero.tolist() == [[3], [40]]
    assert Grid(first.scale).where(torch.tensor([[True], [False]]), Grid(second.scale)).zero is None


@pytest.mark.fast
def test_rounded_to_8_digits_is_bfloat16() -> None:
    assert torch.equal(rounded(WEIGHT, digits=8), WEIGHT.bfloat16().float())


@pytest.mark.fast
@pytest.mark.parametrize("digits", [2, 5, 8])
def test_rounding_errs_by_half_a_unit_of_the_last_digit_at_most(digits: int) -> None:
    errors = (rounded(WEIGHT, digits=digits) - WEIGHT).abs() / WEIGHT.abs().log2().floor().exp2()
    assert 0 < errors.max() <= 2.0**-digits
