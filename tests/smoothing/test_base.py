"""Scales and ranges against a slow search in float64; that a model stays what it is, see test_post_training.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimexp.model.scaling import Scaling
from slimexp.quantizer.minmax import MinMax
from slimexp.smoothing.awq import AWQ, clipped
from slimexp.smoothing.base import Readers
from slimexp.smoothing.smoothquant import SmoothQuant

pytestmark = pytest.mark.fast
ROWS, COLUMNS = 6, 8


def layers() -> tuple[dict[str, Tensor], Tensor]:
    """Weights of two layers that read the same inputs, whose channels differ in size; one channel never wakes."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(ROWS, COLUMNS, generator=generator) for name in "ab"}
    x = torch.randn(50, COLUMNS, generator=generator) * torch.logspace(-1, 1, COLUMNS)
    x[:, 3] = 0
    return weights, x


def scaling(copies: int = 1) -> Scaling:
    """Between a norm of so many channels and two layers."""
    after = {name: nn.Linear(COLUMNS, ROWS, bias=False) for name in "ab"}
    return Scaling(nn.LayerNorm(COLUMNS // copies), after, width=COLUMNS // copies, copies=copies)


def by_row(weight: np.ndarray, quantizer: MinMax) -> np.ndarray:
    x = torch.from_numpy(weight).float()
    return quantizer.round(x, quantizer.fitted(x)).double().numpy()


def test_smoothquant_is_equation_4() -> None:
    weights, x = layers()
    smoothing = SmoothQuant(rows=1, alpha=0.3)
    seen = smoothing.merge(smoothing.observe(weights["a"], x[:20]), smoothing.observe(weights["a"], x[20:]))
    scales = smoothing.scales(Readers(scaling(), weights, seen, {}))
    largest = np.maximum(*(w.abs().numpy().max(0) for w in weights.values()))
    with np.errstate(divide="ignore"):
        expected = np.abs(x.numpy()).max(0) ** 0.3 / largest**0.7
    expected[3] = 1  # nothing is known of a channel that sleeps
    np.testing.assert_allclose(scales, expected, rtol=1e-5)


def test_heads_that_share_a_channel_share_a_scale() -> None:
    weights, x = layers()
    smoothing, two = SmoothQuant(rows=1, alpha=0.5), scaling(copies=2)
    scales = smoothing.scales(Readers(two, weights, smoothing.observe(weights["a"], x), {}))
    assert scales.shape == (COLUMNS // 2,)
    assert torch.equal(two.spread(scales), scales.repeat(2))


def test_awq_takes_the_exponent_of_least_error() -> None:
    weights, x = layers()
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
def test_ranges_that_err_least_and_never_more_than_before(group_size: int | None) -> None:
    weights, x = layers()
    weight, hessian = weights["a"], x.T @ x
    quantizer = MinMax(bits=2, group_size=group_size)
    narrow = clipped(weight, hessian, quantizer)
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothQuant(rows=0, alpha=0.5), r"smoothing\.rows must be >= 1, got 0"),
        (lambda: SmoothQuant(rows=1, alpha=-0.1), r"smoothing\.alpha must be in \[0, 1\], got -0\.1"),
        (lambda: AWQ(rows=1, points=0, clip=True), r"smoothing\.points must be >= 1, got 0"),
    ],
)
def test_wrong_values(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
