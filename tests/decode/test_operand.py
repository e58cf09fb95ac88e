"""Weights that read the same input are one matrix, however each is packed."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from slimexp.decode.operand import Matrix, stacked
from slimexp.decode.packed_linear import PackedLinear
from slimexp.kernel.base import FLOAT8, Packed
from slimexp.kernel.scaled_mm import ScaledMM


def layers(count: int = 3) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(128, 32 * (n + 1)) for n in range(count)]


@pytest.fixture
def packed_linear(rounded: Callable[..., Packed]) -> Callable[..., PackedLinear]:
    """Layer, bits, group (and one zero point for all groups) -> its packed weights."""

    def make(layer: nn.Linear, bits: int, group: int | None, zero: int | None = None) -> PackedLinear:
        packed = rounded(layer, bits, group)
        return PackedLinear(packed if zero is None else packed._replace(zero=torch.full_like(packed.scale, zero)))

    return make


def float8(layer: nn.Linear) -> ScaledMM:
    scale = layer.weight.detach().abs().amax(-1, keepdim=True) / 448
    return ScaledMM(Packed((layer.weight.detach() / scale).to(FLOAT8), scale, None, 8, layer.bias, None))


def weight(matrix: Matrix) -> torch.Tensor:
    """As floats."""
    if not matrix.packed:
        return matrix.weight.float() * (1 if matrix.scale is None else matrix.scale)
    into = PackedLinear(Packed(torch.zeros(32, 32, dtype=torch.int8), torch.ones(32, 1), None, matrix.bits, None, None))
    into.weight_packed, into.scale, into.zero = matrix.weight, matrix.scale, matrix.zero  # type: ignore[assignment]
    return into.matrix(torch.float32)


@pytest.mark.fast
def test_of_one_kind_the_layers_become_views(packed_linear: Callable[..., PackedLinear]) -> None:
    for kind, made in (
        ("dense", layers()),
        ("int4", [packed_linear(one, 4, 32) for one in layers()]),
        ("fp8", [float8(one) for one in layers()]),
    ):
        expected = torch.cat([one.weight if kind == "dense" else one.matrix(torch.float32) for one in made])
        matrix = stacked(made, torch.bfloat16)
        assert matrix.kind == kind and torch.equal(weight(matrix), expected)
        name = {"dense": "weight", "int4": "weight_packed", "fp8": "numbers"}[kind]
        assert getattr(made[0], name).data_ptr() == matrix.weight.data_ptr()
        assert matrix.bias is not None and torch.equal(matrix.bias, torch.cat([one.bias for one in made]))


@pytest.mark.fast
def test_of_several_widths_it_is_packed_with_the_least_bits_that_hold_all(
    packed_linear: Callable[..., PackedLinear],
) -> None:
    first, second, third = layers()
    made = [packed_linear(first, 8, None), packed_linear(second, 4, 32), packed_linear(third, 4, 64, zero=-3)]
    matrix = stacked(made, torch.bfloat16)
    assert matrix.kind == "int8" and matrix.scale is not None and matrix.scale.shape == (192, 4)
    assert matrix.zero is not None and matrix.zero[:96].eq(0).all() and matrix.zero[96:].eq(-3).all()
    assert torch.equal(weight(matrix), torch.cat([one.matrix(torch.float32) for one in made]))
    assert made[1].bits == 4  # what reads the prompt keeps its own


@pytest.mark.fast
def test_beside_a_dense_layer_all_are_dense(packed_linear: Callable[..., PackedLinear]) -> None:
    first, second, third = layers()
    made = [first.bfloat16(), packed_linear(second, 4, 32), float8(third)]
    matrix = stacked(made, torch.bfloat16)
    assert matrix.kind == "dense" and matrix.weight.dtype == torch.bfloat16
    expected = torch.cat([first.weight, made[1].matrix(torch.bfloat16), made[2].matrix(torch.bfloat16)])
    assert torch.equal(matrix.weight, expected)


@pytest.mark.fast
@pytest.mark.parametrize("without", [0, 2])
def test_a_layer_without_a_bias_adds_none(without: int) -> None:
    made = layers()
    made[without].register_parameter("bias", None)
    matrix = stacked(made, torch.float32)
    expected = [torch.zeros(one.out_features) if one.bias is None else one.bias for one in made]
    assert matrix.bias is not None and torch.equal(matrix.bias, torch.cat(expected))
    assert stacked([made[without]], torch.float32).bias is None
