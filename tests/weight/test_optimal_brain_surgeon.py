"""The solver that SparseGPT and GPTQ share, against a dense reference in float64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from slimexp.weight.optimal_brain_surgeon import fix_strip, gram, inverse_factor, quantize_columns

pytestmark = pytest.mark.fast
ROWS, COLUMNS, DAMPENING = 5, 12, 0.01


def inputs() -> Tensor:
    """Tokens [N, in] whose channels depend on each other."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator)


def dampened(hessian: Tensor) -> Tensor:
    hessian = hessian.double()
    return hessian + DAMPENING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)


def factor_of(hessian: Tensor) -> Tensor:
    return inverse_factor(hessian, dampening=DAMPENING, owner="this", option="dampening")


def test_gram_adds_up_over_rows_in_float32() -> None:
    x = inputs().bfloat16()
    expected = x.double().T @ x.double()
    torch.testing.assert_close((gram(x[:15]) + gram(x[15:])).double(), expected, rtol=1e-4, atol=1e-3)
    assert gram(x).dtype == torch.float32


def test_the_factor_is_of_the_inverse_and_its_rows_are_those_of_every_rest() -> None:
    hessian = gram(inputs())
    upper, dense = factor_of(hessian).double(), dampened(hessian)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, dense.inverse(), rtol=1e-4, atol=1e-6)
    for j in range(COLUMNS):
        rest = dense[j:, j:].inverse()[0]
        torch.testing.assert_close(upper[j, j:], rest / rest[0].sqrt(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strip", [1, 4, 5, COLUMNS])
def test_columns_to_the_right_make_up_for_what_is_settled(strip: int) -> None:
    """Every second column goes to zero; strips do not matter."""
    generator = torch.Generator().manual_seed(1)
    weight, hessian = torch.randn(ROWS, COLUMNS, generator=generator), gram(inputs())
    new, factor = weight.clone(), factor_of(hessian)
    gone = torch.arange(0, COLUMNS, 2)

    stays = torch.ones(COLUMNS).index_fill(0, gone, 0)
    fix = partial(fix_strip, torch.mul)
    for begin in range(0, COLUMNS, strip):
        end = min(begin + strip, COLUMNS)
        quantize_columns(new, begin, end, factor, fix, stays[begin:end])

    w, h = weight.double(), dampened(hessian)
    for j in range(COLUMNS):  # Hassibi & Stork 1993: the optimal brain surgeon, one column after the other
        if j in gone:
            inverse = torch.linalg.inv(h[j:, j:])
            w[:, j:] -= torch.outer(w[:, j] / inverse[0, 0], inverse[0])
    torch.testing.assert_close(new.double(), w, rtol=1e-3, atol=1e-4)
    assert (new[:, gone] == 0).all()


def test_inputs_that_never_woke_leave_columns_alike() -> None:
    assert torch.equal(factor_of(torch.zeros(3, 3)), torch.eye(3))


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf])
def test_what_is_not_finite_names_who_asked_and_the_way_out(spoiled: float) -> None:
    hessian = gram(inputs())
    hessian[1, 1] = spoiled
    with pytest.raises(
        ValueError, match=r"not finite, or depend .* too closely for this: raise dampening \(it is 0\.01"
    ):
        factor_of(hessian)
