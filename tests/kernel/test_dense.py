"""The fallback computes what integers would."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slimexp.kernel.base import FLOAT8, Kernel, Packed
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32


@pytest.mark.parametrize(("kernel", "tolerance"), [(DenseFloat32, 1e-6), (DenseBfloat16, 1e-2)])
@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("activation", ["token", None, 0.03])
def test_dense_computes_the_same(
    packed: Callable[..., Packed],
    distance: Callable[..., float],
    kernel: type[Kernel],
    tolerance: float,
    activation: object,
    float8: bool,
) -> None:
    layer = packed(33, 60, 20, bits=8 if float8 else 4, activation=activation)
    if float8:
        layer = layer._replace(numbers=layer.numbers.float().to(FLOAT8))
    assert distance(kernel, layer, 3) < tolerance
    x: Tensor = torch.randn(3, 60, dtype=torch.bfloat16)
    assert kernel(layer)(x).dtype == torch.bfloat16
