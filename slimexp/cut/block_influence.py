"""Block influence: a block matters as much as it turns what goes through it."""

import torch
from torch import Tensor


def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """Sum over tokens of ``1 - cos(x_t, y_t)`` between what a block reads and what it puts out.

    Men et al. 2024, "ShortGPT: layers in large language models are more redundant than you expect", equation 1 (which
    takes the mean).

    Args:
        before: Residual stream before the block, [..., hidden].
        after: The same behind it.

    Returns:
        A number in [0, 2 tokens], in float32: 0 where the block changes no direction.
    """
    return (1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).sum()
