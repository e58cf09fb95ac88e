"""Grids: the numbers that quantized values may have, and how many values share a scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PER_TENSOR = "tensor"  # as a group size: one scale for all entries
BFLOAT16_DIGITS = 8  # binary digits of a bfloat16 significand, the leading one included


@dataclass(frozen=True)
class Granularity:
    """How many neighbours in a row share a scale, by the shapes of input and scale.

    ==========================  ============  =====================  ===================
    ``group_size``              input         scale                  also called
    ==========================  ============  =====================  ===================
    ``None``, a weight          [out, in]     [out, 1]               per channel
    ``g``, a weight             [out, in]     [out, in / g]          per group
    ``None``, an activation     [..., D]      [..., 1]               per token
    ``"tensor"``                any           [1]                    per tensor
    ==========================  ============  =====================  ===================
    """

    group_size: int | str | None

    def __post_init__(self) -> None:
        if self.per_tensor or self.group_size is None or (isinstance(self.group_size, int) and self.group_size >= 1):
            return
        raise ValueError(
            f"group_size must be >= 1, null for one scale per row, or tensor for one in all, got {self.group_size}"
        )

    @property
    def per_tensor(self) -> bool:
        """Whether all entries share one scale."""
        return self.group_size == PER_TENSOR

    def columns(self, row: int) -> int:
        """Number of neighbours that share a scale in a row of ``row`` entries."""
        return self.group_size if isinstance(self.group_size, int) else row

    def split(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., groups, in / groups], or [1, entries] where all share a scale.

        Raises:
            ValueError: The group size does not divide the row.
        """
        if self.per_tensor:
            return x.reshape(1, -1)
        size = self.columns(x.shape[-1])
        if x.shape[-1] % size:
            raise ValueError(
                f"group_size must divide the length of a row, got {size} for rows of {x.shape[-1]}: "
                "choose a divisor, or null for one scale per row"
            )
        return x.unflatten(-1, (-1, size))


@dataclass(frozen=True)
class Grid:
    """The numbers that quantized values may have: ``(integer - zero) * scale``.

    Attributes:
        scale: Float32 [..., groups] (per tensor [1]), not 0; negative where the positive side reaches further, see
            ``Quantizer.scaled``.
        zero: Zero point: the integer that represents zero, int8 of the same shape; ``None`` where it is 0 (a symmetric
            grid).
    """

    scale: Tensor
    zero: Tensor | None = None

    def where(self, chosen: Tensor, other: "Grid") -> "Grid":
        """This grid where ``chosen``, bool [..., groups], and elsewhere the other one."""
        scale = torch.where(chosen, self.scale, other.scale)
        if self.zero is None or other.zero is None:
            return Grid(scale)
        return Grid(scale, torch.where(chosen, self.zero, other.zero))


def stacked(grids: Sequence[Grid]) -> Grid:
    """Grids of matrices, scales [out, groups], as that of the stack of them, [n, out, groups]."""
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    return Grid(torch.stack([grid.scale for grid in grids]), torch.stack(zeros) if zeros else None)


def rounded(x: Tensor, *, digits: int) -> Tensor:
    """``x`` >= 0, float32, rounded to the nearest number of ``digits`` significant binary digits, half to even.

    On the digits as integers, which is a few cheap operations, and the same ones to every compiler. Numbers below the
    least normal one are rounded to more digits than they have.
    """
    dropped = 24 - digits  # of a significand of 24, its leading one included
    whole = x.view(torch.int32)
    up = (1 << (dropped - 1)) - 1 + (whole >> dropped & 1)
    return (whole + up & -(1 << dropped)).view(torch.float32)
