from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from slimexp.importance.sparsegpt import SparseGPT
from slimexp.pattern.base import Pattern
from slimexp.pattern.n_m import NM
from slimexp.pattern.unstructured import Unstructured

ROWS, COLUMNS, DAMPENING = 12, 24, 0.01
Pick = Callable[[np.ndarray], np.ndarray]  # costs of a strip -> what stays of it


def layer() -> tuple[Tensor, Tensor]:
    """A weight, and inputs whose channels depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(200, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator)
    return torch.randn(ROWS, COLUMNS, generator=generator), mixed * torch.logspace(-1, 1, COLUMNS)


def pruned(
    weight: Tensor, x: Tensor, pattern: Pattern, *, strip: int, sparsity: float = 0.5, alive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    importance = SparseGPT(rows=2, dampening=DAMPENING, strip=strip)
    hessian = importance.observe(weight, x[:150]) + importance.observe(weight, x[150:])
    alive = torch.ones_like(weight, dtype=torch.bool) if alive is None else alive
    strips = pattern.strips(weight.shape, sparsity, about=strip)
    return importance.prune(
        weight, alive, hessian, strips, lambda scores, live, share: pattern.keep([scores], [live], share)[0]
    )


def slow(weight: Tensor, x: Tensor, alive: np.ndarray, width: int, pick: Pick) -> np.ndarray:
    """The weight after the optimal brain surgeon went from column to column, in float64, inverting anew at each."""
    w, tokens = weight.double().numpy() * alive, x.double().numpy()
    hessian = tokens.T @ tokens
    hessian += DAMPENING * np.diag(hessian).mean() * np.eye(len(hessian))
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(len(hessian))]
    for begin in range(0, w.shape[1], width):
        costs = np.stack([w[:, j] ** 2 / inverses[j][0, 0] for j in range(begin, begin + width)], axis=1)
        stays = pick(np.where(alive[:, begin : begin + width], costs, -1.0)) & alive[:, begin : begin + width]
        for j in range(begin, begin + width):
            gone = np.where(stays[:, j - begin], 0.0, w[:, j])
            w[:, j:] -= np.outer(gone, inverses[j][0] / inverses[j][0, 0])
            w[~stays[:, j - begin], j] = 0.0
    return w


def best(costs: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` highest of every row."""
    return costs.argsort(1).argsort(1) >= costs.shape[1] - count


def half_of_each_row(costs: np.ndarray) -> np.ndarray:
    return best(costs, costs.shape[1] // 2)


def half_of_all(costs: np.ndarray) -> np.ndarray:
    return best(costs.reshape(1, -1), costs.size // 2).reshape(costs.shape)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("pattern", "strip", "pick"),
    [
        (Unstructured(scope="layer"), 8, half_of_all),
        (Unstructured(scope="layer"), 24, half_of_all),
        (Unstructured(scope="row"), 8, half_of_each_row),
        (NM(m=4), 4, half_of_each_row),
        (NM(m=8), 8, half_of_each_row),
    ],
    ids=["layer in 3 strips", "layer", "row", "2:4", "4:8"],
)
@pytest.mark.parametrize("before", [0.0, 0.3])
def test_against_a_slow_surgeon_in_float64(pattern: Pattern, strip: int, pick: Pick, before: float) -> None:
    weight, x = layer()
    alive = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) >= before
    expected = slow(weight, x, alive.numpy(), strip, pick)
    new, kept = pruned(weight, x, pattern, strip=strip, alive=alive)
    assert np.array_equal(kept.numpy(), expected != 0)
    np.testing.assert_allclose(new.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.fast
@pytest.mark.parametrize(
    "pattern", [Unstructured(scope="layer"), Unstructured(scope="row"), NM(m=4)], ids=["layer", "row", "2:4"]
)
def test_outputs_change_less_than_by_masking_alone(pattern: Pattern) -> None:
    weight, x = layer()
    new, kept = pruned(weight, x, pattern, strip=COLUMNS)
    by_size = pattern.keep([weight.abs() * x.norm(dim=0)], [torch.ones_like(kept)], 0.5)[0]
    error, masked, wanda = (((w - weight) @ x.T).square().sum() for w in (new, weight * kept, weight * by_size))
    assert error < masked
    assert error < wanda


@pytest.mark.fast
def test_inputs_without_correlation_leave_the_survivors_alone() -> None:
    weight = layer()[0]
    new, kept = pruned(weight, torch.eye(COLUMNS).repeat(8, 1), Unstructured(scope="layer"), strip=24)
    torch.testing.assert_close(new[kept], weight[kept])
    assert torch.equal(kept, Unstructured(scope="layer").keep([weight.abs()], [torch.ones_like(kept)], 0.5)[0])


@pytest.mark.fast
def test_columns_that_no_token_woke_go_first_and_those_that_must_stay_keep_their_weights() -> None:
    weight, x = layer()
    x[:, :16] = 0
    new, kept = pruned(weight, x, Unstructured(scope="row"), strip=24)
    assert kept[:, 16:].all()
    torch.testing.assert_close(new[:, :16], weight[:, :16] * kept[:, :16])


@pytest.mark.fast
def test_a_weight_in_bfloat16_is_computed_in_float32() -> None:
    weight, x = layer()
    new, _ = pruned(weight.bfloat16(), x.bfloat16(), NM(m=4), strip=4)
    assert new.dtype == torch.float32


@pytest.mark.fast
def test_inputs_that_are_not_finite_are_refused() -> None:
    weight, x = layer()
    with pytest.raises(ValueError, match=r"raise importance\.dampening \(it is 0\.01\)"):
        pruned(weight, x * torch.nan, NM(m=4), strip=4)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dampening": 0.0}, "dampening must be > 0, got 0.0"),
        ({"strip": 0}, "strip must be >= 1 column, got 0"),
        ({"rows": 0}, "must be >= 1, got 0"),
    ],
)
def test_wrong_values(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseGPT(**{"rows": 1, "dampening": 0.01, "strip": 8} | settings)  # type: ignore[arg-type]
