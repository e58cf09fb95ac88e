"""The optimal brain surgeon on rows of a weight: columns are fixed one by one, those to their right make up for it.

SparseGPT fixes weights at zero, GPTQ at points of a grid; the rest is the same. For inputs X the outputs of a row w
err by ``(w' - w) H (w' - w)^T``, where ``H = X^T X``.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def gram(x: Tensor) -> Tensor:
    """The Gram matrix ``X^T X`` of N tokens, [N, in] -> [in, in], in float32: their H."""
    x = x.float()
    return x.T @ x


def inverse_factor(hessian: Tensor, *, dampening: float, owner: str, option: str) -> Tensor:
    """Upper Cholesky factor U of ``H^-1``, H dampened.

    Row j of U from the diagonal on is ``[H_j^-1]_0`` over the root of ``[H_j^-1]_00``, where ``H_j`` is H without the
    rows and columns before j (Frantar et al. 2022, "GPTQ", section 3.3).

    Args:
        hessian: [in, in].
        dampening: Added to the diagonal, as a share of its mean.
        owner: Name of the method, for the message.
        option: Configuration key of ``dampening``, for the message.

    Returns:
        [in, in], upper triangular.

    Raises:
        ValueError: H is not finite, or not positive definite in float32.
    """
    mean = hessian.diagonal().mean()
    added = torch.where(mean > 0, dampening * mean, 1.0)  # inputs that are all zero: every column alike
    dampened = hessian.clone()
    dampened.diagonal().add_(added)
    lower, failed = torch.linalg.cholesky_ex(dampened)
    upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower, out=dampened), upper=True)
    if failed or failed_too:
        raise ValueError(
            f"its inputs are not finite, or depend on each other too closely for {owner}: raise {option} "
            f"(it is {dampening})"
        )
    return upper


def quantize_columns(
    weight: Tensor, begin: int, end: int, factor: Tensor, value: Callable[[int, Tensor], Tensor]
) -> None:
    """Fix columns ``begin`` to ``end - 1`` from left to right, and let all columns to their right make up for it.

    Args:
        weight: [out, in] in float32, changed in place; fixed columns come to their values up to rounding.
        begin: First column.
        end: One past the last column; those beyond it move once, when all of these are fixed.
        factor: Upper Cholesky factor of the inverse Hessian, see ``inverse_factor``, [in, in].
        value: Index of a column and its weights, [out], as they are by then -> the weights that it is fixed at.
    """
    here, block = weight[:, begin:end], factor[begin:end, begin:end]
    errors = torch.zeros_like(here)
    for j in range(end - begin):
        errors[:, j] = (here[:, j] - value(begin + j, here[:, j])) / block[j, j]
        here[:, j:].addr_(errors[:, j], block[j, j:], alpha=-1)
    weight[:, end:].addmm_(errors, factor[begin:end, end:], alpha=-1)
