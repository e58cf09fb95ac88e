"""Packed integers as blocks of ggml: 32 neighbours of a row, the scale that they share, and for some a minimum.

A number of a block stands for ``scale * (number - 2^(bits-1))`` where the grid is symmetric (the 8 bits of Q8_0 have a
sign of their own), and for ``scale * number + minimum`` where it is not. Scale and minimum are float16.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimexp.kernel.base import Packed

BLOCK = 32  # numbers of a block


@dataclass(frozen=True)
class BlockType:
    """A type of blocks.

    Attributes:
        name: Its name in ggml.
        bits: Width of a number.
        symmetric: Whether there is no minimum.
    """

    name: str
    bits: int
    symmetric: bool


TYPES = (
    BlockType("Q4_0", 4, True),
    BlockType("Q5_0", 5, True),
    BlockType("Q8_0", 8, True),
    BlockType("Q4_1", 4, False),
)


def block_type(bits: int, *, symmetric: bool) -> BlockType | None:
    """The narrowest blocks that hold integers of ``bits`` as they are; ``None`` where there are none."""
    return next((kind for kind in TYPES if kind.symmetric == symmetric and kind.bits >= bits), None)


def unfit(columns: int, groups: int) -> bool:
    """Whether a row of ``columns`` integers with ``groups`` scales is no row of blocks."""
    return columns % groups != 0 or (columns // groups) % BLOCK != 0


def blocks(packed: Packed) -> tuple[NDArray[np.uint8], BlockType, float]:
    """The integers of a layer as rows of blocks; a group of several blocks has its scale in each.

    Args:
        packed: The layer; its blocks have a type, and its groups are whole blocks.

    Returns:
        rows: Bytes, [out, bytes of a row].
        kind: Their type.
        error: Largest change of a scale or minimum by float16, as a share of it; 0 where all are as they were.
    """
    columns, groups = packed.numbers.shape[1], packed.scale.shape[1]
    kind = block_type(packed.bits, symmetric=packed.zero is None)
    assert kind is not None and not unfit(columns, groups)
    middle = 0 if kind.bits == 8 else 2 ** (kind.bits - 1)
    numbers = (packed.numbers.int() + middle).unflatten(1, (-1, BLOCK))
    heads = [packed.scale]
    if packed.zero is not None:
        heads.append(-packed.scale * (packed.zero.float() + middle))
    repeats = columns // groups // BLOCK
    short = [head.half().repeat_interleave(repeats, 1).unsqueeze(-1) for head in heads]
    parts = [head.numpy().view(np.uint8) for head in short] + _numbers(numbers, kind.bits)
    return np.concatenate(parts, axis=-1).reshape(len(numbers), -1), kind, max(map(_error, heads))


def _numbers(numbers: Tensor, bits: int) -> list[NDArray[np.uint8]]:
    """Numbers [out, blocks, 32] as bytes: the fifth bits of all, then the low four, that of place i + 16 above i's."""
    if bits == 8:
        return [numbers.to(torch.int8).numpy().view(np.uint8)]
    array = numbers.numpy().astype(np.uint8)
    low, half = array & np.uint8(15), BLOCK // 2
    nibbles = low[..., :half] | np.left_shift(low[..., half:], np.uint8(4))
    return [nibbles] if bits == 4 else [np.packbits(array >> 4, axis=-1, bitorder="little"), nibbles]


def _error(numbers: Tensor) -> float:
    return float(((numbers.half().float() - numbers).abs() / numbers.abs().clamp(min=1e-30)).max())
