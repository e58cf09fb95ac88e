"""The optimal brain surgeon on rows of a weight: columns are fixed one by one, those to their right make up for it.

SparseGPT fixes weights at zero, GPTQ at points of a grid; the rest is the same. For inputs X the outputs of a row w
err by ``(w' - w) H (w' - w)^T``, where ``H = X^T X``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from slimexp.weight.product import product


def gram(x: Tensor) -> Tensor:
    """The Gram matrix ``X^T X`` of N tokens, [N, in] -> [in, in], in float32: their H."""
    return product(x.T, x)


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


def fix_strip(value: Callable[..., Tensor], weight: Tensor, block: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Fix the columns of a strip from left to right; those to the right within the strip make up for each.

    All is transposed, so that a column lies in one piece of memory.

    Args:
        value: Weights of a column as they are by then, [out], and its row of each of ``others`` -> the weights that it
            is fixed at.
        weight: The strip, [n, out] in float32.
        block: Rows and columns of the strip in the factor, [n, n].
        others: What ``value`` needs to know of each column, [n, ...].

    Returns:
        The fixed weights, and their errors over the factor's diagonal, both [n, out].
    """
    weight = weight.clone(memory_format=torch.contiguous_format)
    fixed, errors = torch.empty_like(weight), torch.empty_like(weight)
    for j in range(len(weight)):
        fixed[j] = value(weight[j], *(other[j] for other in others))
        torch.div(weight[j] - fixed[j], block[j, j], out=errors[j])
        if rest := len(weight) - j - 1:
            weight[-rest:].addr_(block[j, -rest:], errors[j], alpha=-1)
    return fixed, errors


def quantize_columns(
    weight: Tensor, begin: int, end: int, factor: Tensor, fix: Callable[..., tuple[Tensor, ...]], *others: Tensor
) -> None:
    """Fix columns ``begin`` to ``end - 1``, and let all columns to their right make up for it.

    Args:
        weight: [out, in] in float32, changed in place.
        begin: First column.
        end: One past the last column; those beyond it move once, when all of these are fixed.
        factor: Upper Cholesky factor of the inverse Hessian, see ``inverse_factor``, [in, in].
        fix: ``fix_strip`` of some ``value``.
        others: What that needs to know of each column, [end - begin, ...].
    """
    fixed, errors = fix(weight[:, begin:end].T, factor[begin:end, begin:end], *others)
    weight[:, begin:end] = fixed.T
    weight[:, end:].addmm_(errors.T, factor[begin:end, end:], alpha=-1)
