"""Block: rectangles of weights are zero together."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from slimexp.pattern.base import Pattern

Scope = Literal["layer", "global"]


class Block(Pattern):
    """Blocks of ``height`` x ``width`` weights compete within a scope (Narang et al. 2017, "Block-sparse RNNs").

    A block's score is a norm of its entries' scores: with ``importance=magnitude``, the L1 or L2 norm of its weights.
    (The paper takes the largest entry.) The sparsity is the share of blocks of zeros, so that after an unstructured
    stage the share of weights that are zero is higher.

    Args:
        height: Number of outputs that share a block; must divide that of the layer.
        width: Number of inputs that share a block; must divide that of the layer.
        norm: Order of the norm, 1 or 2.
        scope: Whether the blocks of one ``layer`` compete, or those of all layers (``global``).
    """

    def __init__(self, *, height: int, width: int, norm: int, scope: Scope) -> None:
        if height < 1 or width < 1:
            raise ValueError(f"height and width of a block must be >= 1, got {height} and {width}")
        if norm not in (1, 2):
            raise ValueError(f"norm must be 1 or 2, got {norm}")
        if scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}")
        self.height = height
        self.width = width
        self.norm = norm
        self.across_layers = scope == "global"

    @property
    def row_multiple(self) -> int:
        return math.lcm(self.height, self.width)  # removal cuts the rows of one layer with the columns of another

    def split(self, x: Tensor) -> Tensor:
        rows, columns = x.shape
        if rows % self.height or columns % self.width:
            raise ValueError(
                f"blocks must divide the weight, got {self.height} x {self.width} for {rows} x {columns}: "
                "choose a height and a width that are divisors"
            )
        tiles = x.reshape(rows // self.height, self.height, columns // self.width, self.width)
        return tiles.transpose(1, 2).reshape(1, -1, self.height * self.width)

    def join(self, parts: Tensor, shape: torch.Size) -> Tensor:
        rows, columns = shape
        tiles = parts.reshape(rows // self.height, columns // self.width, self.height, self.width)
        return tiles.transpose(1, 2).reshape(shape)

    def unit_scores(self, scores: Tensor) -> Tensor:
        return torch.linalg.vector_norm(scores, ord=self.norm, dim=-1)
