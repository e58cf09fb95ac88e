"""Inputs of a product, row by row, as numbers of 8 bits."""

from typing import Literal

import torch
from torch import Tensor

from slimexp.kernel.base import rounded_input, rounding
from slimexp.kernel.cuda_graph import FLOAT8_FROM, capability, has_triton

Activation = Literal["token"] | float


def rounded_values(x: Tensor, activation: Activation | None, kind: torch.dtype, dtype: torch.dtype) -> Tensor:
    """``x`` [..., in] on the grid of ``rounded_rows``, dequantized to ``dtype``; not rounded without ``activation``."""
    if activation is not None and _in_one_kernel(x, kind):
        values, _ = _rounded(x.reshape(-1, x.shape[-1]), activation, kind, dtype)
        return values.view(x.shape)
    return rounded_input(x.float(), activation, kind).to(dtype)


def rounded_rows(x: Tensor, activation: Activation, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """``x`` [rows, in] rounded as ``base.rounding`` does, in one kernel on a GPU with Triton.

    Returns:
        Numbers of ``kind`` [rows, in] and float32 scales [rows, 1]; a row with a NaN has a scale of NaN.
    """
    if _in_one_kernel(x, kind):
        return _rounded(x, activation, kind, kind)
    numbers, scale = rounding(x.float(), activation, kind)
    scale = scale + 0 * numbers.sum(-1, keepdim=True)  # as an integer NaN would pass for a number
    return numbers.to(kind), scale


def _in_one_kernel(x: Tensor, kind: torch.dtype) -> bool:
    if not x.is_cuda or not x.numel() or not has_triton():
        return False
    return not kind.is_floating_point or capability(x.device) >= FLOAT8_FROM  # below, Triton knows no float8


def _rounded(x: Tensor, activation: Activation, kind: torch.dtype, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers and scales, or where ``dtype`` is another type than their ``kind``, numbers times scales."""
    import triton

    from slimexp.kernel.triton_quantize import rounded

    count, size = x.shape
    numbers = torch.empty(count, size, dtype=dtype, device=x.device)
    scale = torch.empty(count, 1, device=x.device)
    block = triton.next_power_of_2(size)
    fixed = 0.0 if activation == "token" else activation
    warps = max(1, min(16, block // 512))
    rounded[(count,)](
        x.contiguous(), numbers, scale, fixed, SIZE=size, BLOCK=block, FLOAT8=kind.is_floating_point,
        VALUES=dtype != kind, num_warps=warps,
    )  # fmt: skip
    return numbers, scale
