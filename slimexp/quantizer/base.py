"""What every quantizer is: a tensor rounded to a grid of integers times scales, with a gradient.

The grid that is trained on is the grid that is shipped: ``packing.pack`` stores the integers and
scales of these very values and checks that they come back bit for bit.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimexp.attachment import Attachment


@dataclass(frozen=True)
class Granularity:
    """How many neighbours in a row share a scale.

    ==========================  ============  =====================  ===================
    ``group_size``              input         scale                  also called
    ==========================  ============  =====================  ===================
    ``None``, a weight          [out, in]     [out, 1]               per channel
    ``g``, a weight             [out, in]     [out, in / g]          per group
    ``None``, an activation     [B, T, D]     [B, T, 1]              per token
    ==========================  ============  =====================  ===================
    """

    group_size: int | None

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be >= 1, or null for one scale per row, got {self.group_size}")

    def split(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., groups, in / groups].

        Raises:
            ValueError: The group size does not divide the row.
        """
        size = x.shape[-1] if self.group_size is None else self.group_size
        if x.shape[-1] % size:
            raise ValueError(
                f"group_size must divide the length of a row, got {size} for rows of {x.shape[-1]}: "
                "choose a divisor, or null for one scale per row"
            )
        return x.unflatten(-1, (-1, size))


class Quantizer(Attachment):
    """Fake quantization: forward rounds to the grid, backward passes the gradient straight through.

    Bengio et al. 2013 (straight-through estimator); Jacob et al. 2018 (integers in training).
    The grid is symmetric about an exact zero, so pruned entries stay zero.

    Args:
        bits: Width of the integers, 2 to 8.
        group_size: Neighbours in a row that share a scale; ``None`` for the whole row.

    Attributes:
        active: Whether ``forward`` rounds; an inactive quantizer is the identity.
    """

    def __init__(self, *, bits: int, group_size: int | None) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f"bits must be in 2..8, got {bits}")
        self.bits = bits
        self.granularity = Granularity(group_size)
        self.active = True

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer that ``bits`` can hold."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    @abstractmethod
    def scale(self, x: Tensor) -> Tensor:
        """Positive scales of ``x``: [..., in] -> [..., groups], see ``Granularity``."""

    def round(self, x: Tensor, scale: Tensor) -> Tensor:
        """Nearest grid points of ``x``, [..., in], under ``scale``, [..., groups]."""
        groups = self.granularity.split(x)
        scale = scale.unsqueeze(-1)
        integers = (groups / scale).clamp(*self.limits).round()
        return (integers * scale).flatten(-2).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, lambda x: self.round(x, self.scale(x))) if self.active else x

    def arguments(self) -> dict[str, Any]:
        return {"bits": self.bits, "group_size": self.granularity.group_size}


def straight_through(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function(x)``, bit for bit, with the gradient of the identity."""
    return _StraightThrough.apply(x, function)


class _StraightThrough(torch.autograd.Function):
    # x + (f(x) - x).detach() would be simpler and is off by a rounding: the grid must be exact

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
