"""A packed layer holds the very integers, and refuses what it cannot hold."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from slimexp.decode.packed_linear import PackedLinear, rounded_in_blocks
from slimexp.kernel.base import Packed


def packed(bits: int, groups: int, *, affine: bool = False) -> Packed:
    torch.manual_seed(bits)
    half = 2 ** (bits - 1)
    integers = torch.randint(-half, half, (6, 192), dtype=torch.int8)
    zero: Tensor | None = torch.randint(-half, half, (6, groups)) if affine else None
    return Packed(integers, torch.rand(6, groups) + 0.1, zero, bits, torch.rand(6), None)


@pytest.mark.fast
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_integers_are_the_matrix(bits: int, groups: int, affine: bool) -> None:
    layer = packed(bits, groups, affine=affine)
    linear = PackedLinear(layer)
    assert torch.equal(linear.matrix(torch.float32), layer.weight())
    assert linear.weight_packed.numel() * 4 == layer.numbers.numel() * (4 if bits <= 4 else 8) // 8
    x = torch.randn(2, 192)
    torch.testing.assert_close(linear(x), rounded_in_blocks(x) @ layer.weight().T + layer.bias)


@pytest.mark.fast
def test_inputs_are_rounded_by_the_largest_of_32() -> None:
    x = torch.tensor([[127.0] + [0.4] * 31 + [0.0] * 32])
    assert torch.equal(rounded_in_blocks(x), torch.tensor([[127.0] + [0.0] * 63]))
    x = torch.randn(2, 64)
    steps = x.abs().unflatten(-1, (2, 32)).amax(-1) / 127
    assert ((rounded_in_blocks(x) - x).abs().unflatten(-1, (2, 32)).amax(-1) <= steps / 2 + 1e-7).all()


@pytest.mark.gpu
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_on_a_gpu_a_kernel_each_gives_the_very_numbers(bits: int, affine: bool) -> None:
    pytest.importorskip("triton")
    linear = PackedLinear(packed(bits, 3, affine=affine))
    x = torch.randn(5, 192) * torch.logspace(-3, 3, 5)[:, None]
    for dtype in (torch.float32, torch.bfloat16):
        expected = linear.matrix(dtype), rounded_in_blocks(x.to(dtype))
        assert torch.equal(linear.cuda().matrix(dtype).cpu(), expected[0])
        assert torch.equal(rounded_in_blocks(x.to(dtype).cuda()).cpu(), expected[1])
        linear.cpu()


@pytest.mark.fast
def test_a_scale_keeps_its_value(rounded: Callable[..., Packed]) -> None:
    assert PackedLinear(packed(4, 3)).scale.dtype == torch.float32
    assert PackedLinear(rounded(nn.Linear(64, 8), 4, 32)).scale.dtype == torch.bfloat16


@pytest.mark.fast
def test_what_it_cannot_hold_is_refused() -> None:
    assert "multiple of 32" in (PackedLinear.unfit(packed(4, 12)) or "")
    assert "by their own largest" in (PackedLinear.unfit(packed(4, 3)._replace(activation=0.1)) or "")
    assert "runs on cuda, not on cpu" in (PackedLinear.refusal(packed(4, 3), torch.device("cpu")) or "")
    assert PackedLinear.refusal(packed(4, 3), torch.device("cuda")) is None
