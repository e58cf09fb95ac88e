"""Packed layers mean their dequantized weight, and inputs are rounded on the grid that training rounds them on."""

from collections.abc import Callable

import pytest
import torch

from slimexp.kernel.base import FLOAT8, Kernel, Packed, rounded_input, rounding, token_scale
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32
from slimexp.kernel.int_mm import IntMM
from slimexp.kernel.scaled_mm import ScaledMM

Make = Callable[..., Packed]
CUDA = torch.device("cuda")


@pytest.mark.fast
def test_the_weight_is_the_integers_less_zero_times_scale() -> None:
    numbers = torch.tensor([[1, 2, 3, 4], [-8, 7, 0, 1]], dtype=torch.int8)
    scale, zero = torch.tensor([[0.5, 2.0], [1.0, 0.25]]), torch.tensor([[1, 0], [0, -1]])
    layer = Packed(numbers, scale, zero, 4, None, None)
    assert layer.group_size == 2
    assert torch.equal(layer.weight(), torch.tensor([[0.0, 0.5, 6.0, 8.0], [-8.0, 7.0, 0.25, 0.5]]))
    assert torch.equal(layer._replace(zero=None).weight()[0], torch.tensor([0.5, 1.0, 6.0, 8.0]))


@pytest.mark.fast
def test_moved_to_a_device_all_tensors_are_there() -> None:
    layer = Packed(torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 1), None, 8, torch.ones(2), "token")
    moved = layer.to(torch.device("meta"))
    assert {one.device.type for one in moved if isinstance(one, torch.Tensor)} == {"meta"}
    assert (moved.zero, moved.bits, moved.activation) == (None, 8, "token")


@pytest.mark.fast
@pytest.mark.parametrize("affine", [False, True])
def test_a_kernel_counts_weights_and_zeros_with_the_bias(affine: bool, packed: Make) -> None:
    layer = packed(4, 8, 4, bits=4)
    zero = torch.ones(4, 2, dtype=torch.int8) if affine else None
    layer = layer._replace(zero=zero, bias=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    kernel = DenseFloat32(layer)
    assert kernel.live == 32 + 4
    assert kernel.nonzero == int((layer.numbers != (1 if affine else 0)).sum()) + 3


@pytest.mark.fast
def test_a_kernel_refuses_other_devices_and_types(packed: Make) -> None:
    class OnlyCpu(Kernel):
        devices = ("cpu",)

    layer = packed(4, 8, 8)
    assert OnlyCpu.refusal(layer, torch.device("cpu")) is None
    assert OnlyCpu.refusal(layer, CUDA) == "it runs on cpu, not on cuda"
    floats = layer._replace(numbers=layer.numbers.to(FLOAT8))
    assert OnlyCpu.refusal(floats, torch.device("cpu")) == "it multiplies torch.int8, not torch.float8_e4m3fn"


@pytest.mark.fast
def test_the_largest_entry_of_a_row_fills_the_grid() -> None:
    x = torch.tensor([[1.0, -255.0], [0.0, 0.0]])
    assert torch.equal(token_scale(x, -128, 127), torch.tensor([2.0, torch.finfo(torch.float32).eps]))


@pytest.mark.fast
@pytest.mark.parametrize("kind", [torch.int8, FLOAT8])
@pytest.mark.parametrize("activation", ["token", 0.5])
def test_inputs_lie_on_the_grid(activation: object, kind: torch.dtype) -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 300
    numbers, scale = rounding(x, activation, kind)  # type: ignore[arg-type]
    assert torch.equal(numbers.to(kind).to(x.dtype), numbers)
    assert torch.equal(rounded_input(x, activation, kind), numbers * scale)  # type: ignore[arg-type]
    inside = (x / scale).abs() <= (127 if kind == torch.int8 else 448)
    step = scale / 2 if kind == torch.int8 else x.abs() / 16 + scale * 2**-9
    assert ((numbers * scale - x).abs() <= step * 1.0001)[inside].all() and inside.any()


@pytest.mark.fast
def test_inputs_left_in_float_do_not_change() -> None:
    x = torch.randn(2, 8)
    assert rounded_input(x, None, torch.int8) is x


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
