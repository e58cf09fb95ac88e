"""Inputs are rounded the same way wherever it is done."""

import pytest
import torch

from slimexp.kernel.base import FLOAT8, rounding
from slimexp.kernel.quantize_input import rounded_rows, rounded_values

KINDS = [torch.int8, FLOAT8]


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 5)[:, None]
    x[3] = 0
    return x.to(dtype)


@pytest.mark.fast
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["token", 0.01])
def test_rows_are_rounded_each_by_its_own_scale(activation: object, kind: torch.dtype) -> None:
    x = inputs()
    numbers, scale = rounded_rows(x, activation, kind)
    assert numbers.dtype == kind and numbers.shape == x.shape and scale.shape == (5, 1)
    expected, step = rounding(x, activation, kind)
    assert torch.equal(numbers.float() * scale, expected * step)
    if activation == "token":
        largest = 127.5 if kind == torch.int8 else 448
        assert ((numbers.float() * scale - x).abs().amax(-1) <= x.abs().amax(-1) * max(1 / largest, 2**-4)).all()


@pytest.mark.fast
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_a_nan_says_so(kind: torch.dtype) -> None:
    x = inputs()
    x[1, 7] = float("nan")
    _, scale = rounded_rows(x, "token", kind)
    assert scale[1].isnan() and scale[[0, 2, 4]].isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["token", 0.01])
def test_one_kernel_on_a_gpu_gives_the_very_numbers(activation: object, kind: torch.dtype, dtype: torch.dtype) -> None:
    x = inputs(dtype)
    on_gpu, scale = rounded_rows(x.cuda(), activation, kind)
    on_cpu, expected = rounded_rows(x, activation, kind)
    assert torch.equal(on_gpu.cpu().float(), on_cpu.float()) and torch.equal(scale.cpu(), expected)
    values = rounded_values(x.cuda()[None], activation, kind, torch.float32)
    assert torch.equal(values.cpu(), rounded_values(x[None], activation, kind, torch.float32))
    x[1, 7] = float("nan")
    assert rounded_rows(x.cuda(), activation, kind)[1][1].isnan()
    assert rounded_values(x.cuda(), activation, kind, torch.float32)[1].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_rounds_as_a_cpu_does_without_kernels_of_its_own(kind: torch.dtype) -> None:
    x = torch.randn(4096, 96, generator=torch.Generator().manual_seed(0))
    for here, there in zip(rounding(x, "token", kind), rounding(x.cuda(), "token", kind), strict=True):
        assert torch.equal(here, there.cpu())
