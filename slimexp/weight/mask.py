"""Masks: which entries of a weight are alive, chosen by score and attached as a parametrization."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimexp.weight.attachment import Attachment


class Mask(Attachment):
    """Multiplies a weight by 0 or 1.

    The weight that the model sees is zero wherever the mask is, whatever the optimizer does to the
    latent one (momentum, weight decay), and the gradient of a masked entry is zero.

    Args:
        shape: Shape of the weight.

    Attributes:
        mask: Bool, ``shape``; true where the entry is alive. All true at first.
        passes_gradient: Whether masked entries get the gradient they would have if they were alive.
    """

    mask: Tensor

    def __init__(self, *, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(tuple(shape), dtype=torch.bool))
        self.passes_gradient = False

    def forward(self, weight: Tensor) -> Tensor:
        if self.passes_gradient:
            dead = weight * ~self.mask
            return weight * self.mask + (dead - dead.detach())
        return weight * self.mask

    def arguments(self) -> dict[str, Any]:
        return {"shape": list(self.mask.shape)}


def keep_mask(scores: Tensor, keep: int, frozen: Tensor) -> Tensor:
    """The mask of the ``keep`` highest scores among entries that are not ``frozen``.

    Args:
        scores: Finite, any shape.
        keep: Number of entries to keep; where fewer are left unfrozen, all of those are kept.
        frozen: Bool, same shape; entries that are zero for good.

    Returns:
        Bool, same shape, with exactly ``min(keep, unfrozen)`` true.
    """
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    candidates = (~frozen).flatten().nonzero().squeeze(1)
    best = scores.flatten()[candidates].topk(min(keep, len(candidates)), sorted=False).indices
    mask[candidates[best]] = True
    return mask.view_as(scores)


def keep_mask_per_row(scores: Tensor, keep: int, frozen: Tensor) -> Tensor:
    """``keep_mask`` of every row of a matrix by itself.

    Args:
        scores: Finite, [rows, entries].
        keep: Number of entries to keep in every row; where fewer are left unfrozen, all of those are kept.
        frozen: Bool, same shape; entries that are zero for good.

    Returns:
        Bool, same shape, with exactly ``min(keep, unfrozen)`` true in every row.
    """
    best = scores.masked_fill(frozen, -torch.inf).topk(keep, sorted=False).indices
    return torch.zeros_like(frozen).scatter_(1, best, True) & ~frozen


def packed_bits(mask: Tensor) -> Tensor:
    """A bool tensor as bytes of eight entries each, flat, the first entry in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpacked_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """What ``packed_bits`` was given, of ``shape``.

    Raises:
        ValueError: There are more or fewer bytes.
    """
    count = math.prod(shape)
    if bits.ndim != 1 or bits.numel() != -(-count // 8):
        raise ValueError(f"a mask of shape {list(shape)} has {-(-count // 8)} bytes, got {list(bits.shape)}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).reshape(tuple(shape))
