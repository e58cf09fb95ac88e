"""Block influence: a block is as important as it changes the direction of the residual stream."""

import torch
from torch import Tensor


def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """Sum over tokens of ``1 - cos(x_t, y_t)`` between the input and the output of a block.

    Men et al. 2024, "ShortGPT: layers in large language models are more redundant than you expect", equation 1 (which
    takes the mean).

    Args:
        before: Residual stream before the block, [..., hidden].
        after: Residual stream after the block, same shape.

    Returns:
        A float32 scalar in [0, 2 * tokens]: 0 where the block changes no direction.
    """
    return (1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).sum()
