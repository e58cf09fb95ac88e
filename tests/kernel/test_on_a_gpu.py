"""On a GPU the same kernels compute what packed layers mean, and those that can run are timed."""

from collections.abc import Callable

import pytest
import torch

from slimexp.kernel.base import FLOAT8, Kernel, Packed
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32
from slimexp.kernel.int_mm import IntMM
from slimexp.kernel.scaled_mm import ScaledMM
from slimexp.kernel.timing import time_backends

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("rows", [1, 16, 17, 133])
@pytest.mark.parametrize("activation", ["token", 0.03])
@pytest.mark.parametrize(
    ("kernel", "kind", "tolerance"),
    [
        (IntMM, torch.int8, 1e-6),
        (ScaledMM, FLOAT8, 1e-3),  # tensor cores add up in fewer bits than float32
        (DenseFloat32, torch.int8, 1e-6),
        (DenseFloat32, FLOAT8, 1e-6),
        (DenseBfloat16, FLOAT8, 1e-2),
    ],
)
def test_inputs_rounded_as_trained(
    packed: Callable[..., Packed],
    distance: Callable[..., float],
    kernel: type[Kernel],
    kind: torch.dtype,
    tolerance: float,
    activation: object,
    rows: int,
) -> None:
    layer = packed(64, 96, 96, activation=activation)
    layer = layer._replace(numbers=layer.numbers.to(kind)).to(CUDA)
    assert kernel.refusal(layer, CUDA) is None
    assert distance(kernel, layer, rows) < tolerance


@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize(("kind", "product"), [(torch.int8, "IntMM"), (FLOAT8, "ScaledMM")])
def test_what_can_run_is_timed(packed: Callable[..., Packed], kind: torch.dtype, product: str, rows: int) -> None:
    layer = packed(64, 96, 96)
    seconds = time_backends(layer._replace(numbers=layer.numbers.to(kind)).to(CUDA), rows)
    assert list(seconds) == [product, "DenseFloat32", "DenseBfloat16"] and min(map(min, seconds.values())) > 0
