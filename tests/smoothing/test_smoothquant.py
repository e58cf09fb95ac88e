"""SmoothQuant against its equation in float64; that a model stays what it is, see test_post_training.py."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from slimexp.model.scaling import Scaling
from slimexp.smoothing.base import Readers
from slimexp.smoothing.smoothquant import SmoothQuant

pytestmark = pytest.mark.fast
Layers = tuple[dict[str, Tensor], Tensor]


def test_smoothquant_is_equation_4(layers: Layers, scaling: Callable[..., Scaling]) -> None:
    weights, x = layers
    smoothing = SmoothQuant(rows=1, alpha=0.3)
    seen = smoothing.merge(smoothing.observe(weights["a"], x[:20]), smoothing.observe(weights["a"], x[20:]))
    scales = smoothing.scales(Readers(scaling(), weights, seen, {}))
    largest = np.maximum(*(w.abs().numpy().max(0) for w in weights.values()))
    with np.errstate(divide="ignore"):
        expected = np.abs(x.numpy()).max(0) ** 0.3 / largest**0.7
    expected[3] = 1  # nothing is known of a channel whose inputs are all zero
    np.testing.assert_allclose(scales, expected, rtol=1e-5)


def test_heads_that_share_a_channel_share_a_scale(layers: Layers, scaling: Callable[..., Scaling]) -> None:
    weights, x = layers
    smoothing, two = SmoothQuant(rows=1, alpha=0.5), scaling(copies=2)
    scales = smoothing.scales(Readers(two, weights, smoothing.observe(weights["a"], x), {}))
    assert scales.shape == (x.shape[1] // 2,)
    assert torch.equal(two.spread(scales), scales.repeat(2))


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match=r"smoothing\.alpha must be in \[0, 1\], got -0\.1"):
        SmoothQuant(rows=1, alpha=-0.1)
