"""AWQ's scales and ranges against a slow search in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from slimexp.model.scaling import Scaling
from slimexp.quantizer.minmax import MinMax
from slimexp.smoothing.awq import AWQ
from slimexp.smoothing.base import Readers

pytestmark = pytest.mark.fast
COLUMNS = 8
Layers = tuple[dict[str, Tensor], Tensor]


def by_row(weight: np.ndarray, quantizer: MinMax) -> np.ndarray:
    x = torch.from_numpy(weight).float()
    return quantizer.round(x, quantizer.fitted(x)).double().numpy()


def test_awq_takes_the_exponent_of_least_error(layers: Layers, scaling: Callable[..., Scaling]) -> None:
    weights, x = layers
    awq, quantizer = AWQ(rows=1, points=5, clip=False), MinMax(bits=3, group_size=None)
    hessian = awq.merge(awq.observe(weights["a"], x[:20]), awq.observe(weights["a"], x[20:]))
    chosen = awq.scales(Readers(scaling(), weights, hessian, dict.fromkeys(weights, quantizer)))

    def error(scales: np.ndarray) -> float:
        changes = [
            by_row(w.double().numpy() * scales, quantizer) / scales - w.double().numpy() for w in weights.values()
        ]
        return float(sum(np.square(change @ x.double().numpy().T).sum() for change in changes))

    strength = np.sqrt(np.square(x.double().numpy()).sum(0))
    candidates = []
    for k in range(6):
        scales = np.where(strength > 0, strength ** (k / 5), 1.0)
        candidates.append(scales / np.sqrt(scales.max() * scales.min()) if k else np.ones(COLUMNS))
    best = min(candidates, key=error)
    assert error(best) < 0.9 * error(candidates[0])
    np.testing.assert_allclose(chosen, best, rtol=1e-4)


@pytest.mark.parametrize("group_size", [None, 4])
def test_ranges_that_err_least_and_never_more_than_before(layers: Layers, group_size: int | None) -> None:
    weights, x = layers
    weight = weights["a"]
    quantizer = MinMax(bits=2, group_size=group_size)
    awq = AWQ(rows=1, points=5, clip=True)
    narrow = awq.clipped(weight, awq.observe(weight, x), torch.ones(COLUMNS), quantizer)
    size = group_size or COLUMNS
    for begin in range(0, COLUMNS, size):
        here = slice(begin, begin + size)
        row_quantizer, group, tokens = MinMax(bits=2, group_size=None), weight[:, here], x[:, here]

        def error(limited: Tensor) -> Tensor:
            """Per row, [out]."""
            change = row_quantizer.round(group, row_quantizer.fitted(limited)) - group  # noqa: B023
            return (change @ tokens.T).square().sum(1)  # noqa: B023

        largest = group.abs().amax(1, keepdim=True)
        tried = torch.stack([error(group.clamp(-s * largest, s * largest)) for s in np.linspace(1, 0.5, 11)])
        torch.testing.assert_close(error(narrow[:, here]), tried.amin(0), rtol=1e-3, atol=1e-4)
        assert tried.amin(0).sum() < tried[0].sum()


def test_ranges_are_those_of_the_inputs_as_they_are_scaled(layers: Layers) -> None:
    weights, x = layers
    awq, quantizer = AWQ(rows=1, points=5, clip=True), MinMax(bits=2, group_size=None)
    columns = torch.logspace(-1, 1, COLUMNS)
    after = awq.clipped(weights["a"], (x / columns).T @ (x / columns), torch.ones(COLUMNS), quantizer)
    torch.testing.assert_close(awq.clipped(weights["a"], x.T @ x, columns, quantizer), after)
    assert not torch.equal(awq.clipped(weights["a"], x.T @ x, torch.ones(COLUMNS), quantizer), after)


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match=r"smoothing\.points must be >= 1, got 0"):
        AWQ(rows=1, points=0, clip=True)
