"""Products of 16 bits: exact in float32 on a GPU, and the same elsewhere."""

import pytest
import torch

from slimexp.weight.product import _sums_in_float32, add_product, product

HALF = [torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.fast
def test_a_cpu_does_not_add_16_bits_to_32() -> None:
    assert not any(_sums_in_float32(torch.device("cpu"), dtype) for dtype in (*HALF, torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF)
def test_a_gpu_adds_16_bits_to_32(dtype: torch.dtype) -> None:
    assert _sums_in_float32(torch.device("cuda"), dtype)


@pytest.mark.fast
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_no_digit_of_a_product_is_lost(dtype: torch.dtype, device: str) -> None:
    """Integers whose sums 16 bits cannot hold."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-9, 10, shape, generator=generator).to(device, dtype) for shape in ((5, 300), (300, 7)))
    expected = (a.cpu().long() @ b.cpu().long()).to(device, torch.float32)
    assert torch.equal(product(a, b), expected)
    if dtype == torch.float32 or device == "cuda":
        total = torch.full_like(expected, torch.nan)
        add_product(total, a, b, first=True)
        add_product(total, a, b, first=False)
        assert torch.equal(total, 2 * expected)
