"""Blocks hold the very integers and scales of a layer."""

import numpy as np
import pytest
import torch

from slimexp.format.ggml_blocks import block_type, blocks, unfit
from slimexp.kernel.base import Packed

gguf = pytest.importorskip("gguf")


def layer(bits: int, *, columns: int = 128, groups: int = 4, zero: bool = False) -> Packed:
    """A layer with scales of 5 binary digits, negative ones among them, and the least and the largest integer."""
    chance = torch.Generator().manual_seed(bits)
    half = 2 ** (bits - 1)
    numbers = torch.randint(-half, half, (6, columns), generator=chance).to(torch.int8)
    numbers[:, :2] = torch.tensor([-half, half - 1])
    scale = torch.randint(16, 32, (6, groups), generator=chance) / 512.0 * torch.tensor([1, -1, 1, -1])[:groups]
    zeros = torch.randint(-half, half, (6, groups), generator=chance).to(torch.int8) if zero else None
    return Packed(numbers, scale, zeros, bits, None, None)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("bits", "zero", "name", "bytes_of_a_block"),
    [
        (8, False, "Q8_0", 34),
        (6, False, "Q8_0", 34),
        (5, False, "Q5_0", 22),
        (4, False, "Q4_0", 18),
        (3, False, "Q4_0", 18),
        (2, False, "Q4_0", 18),
        (4, True, "Q4_1", 20),
        (2, True, "Q4_1", 20),
    ],
)
def test_the_reader_gives_the_weight(bits: int, zero: bool, name: str, bytes_of_a_block: int, groups: int) -> None:
    packed = layer(bits, zero=zero, groups=groups)
    rows, kind, error = blocks(packed)
    assert (kind.name, rows.dtype, rows.shape) == (name, np.uint8, (6, 4 * bytes_of_a_block))
    read = gguf.dequantize(rows, gguf.GGMLQuantizationType[name])
    assert error == 0 and np.array_equal(read, packed.weight().numpy())


def test_what_16_bits_change_of_a_scale_is_told() -> None:
    packed = layer(8)
    packed.scale[2, 1] *= 1 + 2**-12
    assert 2**-13 < blocks(packed)[2] < 2**-11


@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (5, False)])
def test_no_blocks_of_it(bits: int, symmetric: bool) -> None:
    assert block_type(bits, symmetric=symmetric) is None


@pytest.mark.parametrize(
    ("columns", "groups", "wrong"), [(128, 4, False), (96, 1, False), (128, 8, True), (48, 1, True)]
)
def test_groups_are_whole_blocks(columns: int, groups: int, wrong: bool) -> None:
    assert unfit(columns, groups) is wrong
