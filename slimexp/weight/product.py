"""Products of matrices of 16 bits, summed in float32.

The product of two such numbers is exact in float32. So nothing is lost where the operands stay as they are, which a GPU
multiplies many times faster than float32.
"""

from functools import cache

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, of [m, k] and [k, n]."""
    if _sums_in_float32(a.device, a.dtype):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """Add ``a @ b`` to a sum in place, where it is computed: a pass that adds it would move the sum twice more.

    Args:
        total: The sum in float32, [m, n].
        a: [m, k].
        b: [k, n].
        first: Whether what is in ``total`` counts for nothing.
    """
    beta = 0 if first else 1
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=beta)
    elif _sums_in_float32(total.device, a.dtype):
        torch.addmm(total, a, b, total.dtype, beta=beta, out=total)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


@cache
def _sums_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of 16 bits, and adds the product to a sum in float32, at once and exactly.

    It can on a GPU, from a version on that differs between kinds of sums: so both are tried.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    ones, small = torch.ones(16, 16, device=device, dtype=dtype), 2.0**-12  # next to 16, which 16 bits cannot hold
    total = torch.full((16, 16), small, device=device)
    uneven = ones.clone()
    uneven[:, 0] = small
    try:
        torch.addmm(total, ones, ones, total.dtype, out=total)
        summed = torch.mm(ones, uneven.T.contiguous(), out_dtype=total.dtype)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 16 + small).all()) and bool((summed == 15 + small).all())
