"""Which entries of a weight are alive, kept as a parametrization."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slimexp.attachment import Attachment


class Mask(Attachment):
    """Multiplies a weight by 0 or 1.

    The weight that the model sees is zero wherever the mask is, whatever the optimizer does to the
    latent one (momentum, weight decay), and the gradient of a masked entry is zero.

    Args:
        shape: Shape of the weight.

    Attributes:
        mask: Bool, ``shape``; true where the entry is alive. All true at first.
    """

    mask: Tensor

    def __init__(self, *, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(tuple(shape), dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def arguments(self) -> dict[str, Any]:
        return {"shape": list(self.mask.shape)}
