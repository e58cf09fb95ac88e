import pytest
import torch

from slimexp.quantizer.least_error import LeastError

WEIGHT = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.fast
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 16, "tensor"])
def test_no_other_ratio_errs_less(symmetric: bool, group_size: int | str | None) -> None:
    quantizer = LeastError(bits=3, group_size=group_size, symmetric=symmetric, candidates=9, smallest=0.5)
    groups = quantizer.granularity.split(WEIGHT)
    low, high = groups.aminmax(dim=-1)

    def errors(grid: object) -> torch.Tensor:
        return quantizer.granularity.split(quantizer.round(WEIGHT, grid) - WEIGHT).square().sum(-1)  # type: ignore[arg-type]

    best = errors(quantizer.fitted(WEIGHT))
    every = torch.stack([errors(quantizer.scaled(r * low, r * high)) for r in torch.linspace(1, 0.5, 9).tolist()])
    assert torch.equal(best, every.amin(0))


@pytest.mark.fast
def test_one_candidate_is_min_max() -> None:
    quantizer = LeastError(bits=4, group_size=None, candidates=1, smallest=0.5)
    low, high = quantizer.granularity.split(WEIGHT).aminmax(dim=-1)
    assert torch.equal(quantizer.fitted(WEIGHT).scale, quantizer.scaled(low, high).scale)
