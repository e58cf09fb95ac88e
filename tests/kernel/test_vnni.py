"""Integers multiplied as they are, against a float64 reference."""

import pytest
import torch
from torch import Tensor

from slimexp.kernel import build
from slimexp.kernel.base import Kernel, Packed, rounded_input
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32
from slimexp.kernel.vnni import Vnni

CPU = torch.device("cpu")
compiled = pytest.mark.skipif(build.failure() is not None, reason=f"no compiled kernel: {build.failure()}")


def packed(out: int, size: int, group: int, *, bits: int = 8, activation: object = "token", **more: object) -> Packed:
    chance = torch.Generator().manual_seed(out + size)
    integers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (out, size), generator=chance, dtype=torch.int8)
    scale = torch.rand(out, size // group, generator=chance) * 0.01 + 0.001
    fields = {"zero": None, "bias": torch.randn(out, generator=chance)} | more
    return Packed(integers, scale, bits=bits, activation=activation, **fields)  # type: ignore[arg-type]


def distance(kernel: type[Kernel], layer: Packed, rows: int) -> float:
    """Relative to what the packed layer means, in float64."""
    x = torch.randn(rows, layer.integers.shape[1], generator=torch.Generator().manual_seed(rows))
    bias = 0 if layer.bias is None else layer.bias.double()
    exact = rounded_input(x, layer.activation).double() @ layer.weight().double().T + bias
    return float((kernel(layer)(x) - exact).norm() / exact.norm())


@compiled
@pytest.mark.parametrize("rows", [1, 3, 8, 17])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out", "size", "group"), [(33, 37, 37), (64, 64, 32), (100, 60, 20), (5, 30, 10)])
def test_inputs_rounded_as_trained(out: int, size: int, group: int, bits: int, rows: int) -> None:
    assert distance(Vnni, packed(out, size, group, bits=bits), rows) < 1e-6
    assert distance(Vnni, packed(out, size, group, bits=bits, activation=0.03, bias=None), rows) < 1e-6


@compiled
@pytest.mark.parametrize("bits", [4, 8])
def test_float_inputs_are_rounded_per_group_and_said_to_be(bits: int) -> None:
    layer = packed(64, 128, 32, bits=bits, activation=None)
    assert distance(Vnni, layer, 5) < 1e-2
    assert Vnni(layer).label.endswith(", inputs rounded to int8")


@compiled
def test_a_zero_point() -> None:
    zero = torch.randint(-100, 100, (48, 4), generator=torch.Generator().manual_seed(0))
    assert distance(Vnni, packed(48, 64, 16, zero=zero), 3) < 1e-6


@compiled
def test_shapes_types_and_odd_inputs() -> None:
    layer = Vnni(packed(33, 37, 37))
    x = torch.randn(2, 3, 37)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer(x).flatten(0, 1), layer(x.flatten(0, 1)))
    assert torch.equal(layer(torch.zeros(1, 37))[0], layer.bias[:33])
    assert layer(x[:0]).shape == (0, 3, 33)
    x[1, 1, 5] = float("nan")
    assert layer(x)[1, 1].isnan().all() and layer(x)[0].isfinite().all()


@compiled
def test_it_holds_integers() -> None:
    def held(bits: int) -> int:
        layer = Vnni(packed(64, 128, 128, bits=bits))
        assert layer.integers.dtype == torch.uint8
        return layer.integers.nbytes

    assert held(8) == 64 * 128 and held(4) == 64 * 128 // 2


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Vnni.refusal(packed(8, 8, 8), torch.device("cuda")) == "it runs on a CPU, not on cuda"
    assert "groups must be at most" in str(Vnni.refusal(packed(1, 70000, 70000), CPU))
    monkeypatch.setattr(build.shutil, "which", lambda name: None if name.endswith("++") else name)
    assert build.failure.__wrapped__() == "no C++ compiler"


@pytest.mark.parametrize(("kernel", "tolerance"), [(DenseFloat32, 1e-6), (DenseBfloat16, 1e-2)])
@pytest.mark.parametrize("activation", ["token", None, 0.03])
def test_dense_computes_the_same(kernel: type[Kernel], tolerance: float, activation: object) -> None:
    layer = packed(33, 60, 20, bits=4, activation=activation)
    assert distance(kernel, layer, 3) < tolerance
    x: Tensor = torch.randn(3, 60, dtype=torch.bfloat16)
    assert kernel(layer)(x).dtype == torch.bfloat16
