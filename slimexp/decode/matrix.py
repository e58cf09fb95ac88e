"""Matrices as the fused kernels read them, vectors as they hand them on, and how a product is cut."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimexp.decode.words import BLOCK, Words


@dataclass(frozen=True)
class Tile:
    """How a product is cut.

    Attributes:
        rows: Of a program.
        columns: Read at once, a power of two.
        warps: Of a program.
        fold: Of packed rows, how many are read beside each other: for rows shorter than what a warp reads at once,
            or no multiple of it. ``columns`` of each are read.
        ahead: How many times that is on its way at once.
    """

    rows: int
    columns: int
    warps: int
    fold: int = 1
    ahead: int = 1


@dataclass
class Matrix:
    """One weight, or several that read the same input, below each other.

    Attributes:
        weight: [rows, columns], or words [rows, columns * bits / 32].
        bits: 16 for a dense weight.
    """

    weight: Tensor
    bits: int
    scale: Tensor | None
    zero: Tensor | None
    bias: Tensor | None

    @property
    def rows(self) -> int:
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        return self.weight.shape[1] * (32 // self.bits if self.packed else 1)

    @property
    def packed(self) -> bool:
        return self.bits < 16

    @property
    def bytes(self) -> int:
        """What a step reads of it."""
        tensors = (self.weight, self.scale, self.zero, self.bias)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def stacked(layers: Sequence[nn.Module]) -> Matrix:
    """The weights of ``layers``, packed alike, as one matrix, of whose memory the layers' own become views."""
    first = layers[0]
    if not isinstance(first, Words):
        return Matrix(_joined(layers, "weight"), 16, None, None, _joined_or_none(layers, "bias"))
    return Matrix(
        _joined(layers, "words"),
        first.bits,
        _joined(layers, "scale"),
        _joined_or_none(layers, "zero"),
        _joined_or_none(layers, "bias"),
    )


def _joined_or_none(layers: Sequence[nn.Module], name: str) -> Tensor | None:
    return None if getattr(layers[0], name) is None else _joined(layers, name)


def _joined(layers: Sequence[nn.Module], name: str) -> Tensor:
    tensors = [getattr(layer, name).data for layer in layers]
    if len(tensors) == 1:
        return tensors[0].contiguous()
    joined = torch.cat(tensors)
    for layer, part in zip(layers, joined.split([len(tensor) for tensor in tensors]), strict=True):
        getattr(layer, name).data = part
    return joined


# what ``benchmarks.decode_large --tune`` found quick on an H200; "small" ends as "residual" does, on a short row
_TILES = {
    16: {
        "plain": Tile(32, 256, 16, 1, 7), "gated": Tile(2, 1024, 4, 1, 3), "small": Tile(32, 256, 16, 1, 5),
        "residual": Tile(32, 256, 16, 1, 7), "head": Tile(4, 1024, 4, 1, 3),
    },
    8: {
        "plain": Tile(16, 256, 8, 2, 10), "gated": Tile(32, 512, 8, 1, 2), "small": Tile(32, 512, 8, 1, 5),
        "residual": Tile(32, 512, 16, 1, 10), "head": Tile(64, 512, 8, 1, 2),
    },
    4: {
        "plain": Tile(32, 1024, 8, 1, 3), "gated": Tile(32, 1024, 8, 1, 2), "small": Tile(32, 1024, 16, 1, 3),
        "residual": Tile(32, 1024, 8, 1, 5), "head": Tile(32, 512, 8, 2, 3),
    },
}  # fmt: skip
_FOR_PACKED = Tile(BLOCK, 256, 16, 1, 2)  # of a dense weight before a packed one


def tile(matrix: Matrix, end: str) -> Tile:
    """How a product is cut."""
    return _TILES[matrix.bits]["small" if end == "residual" and matrix.columns < 4096 else end]


class Vector:
    """What one kernel writes and the next reads: [size] as floats, or as int8 with a scale per 32 neighbours."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.integers = torch.zeros(-(-size // BLOCK) * BLOCK, dtype=torch.int8, device=device)
        self.scale = torch.zeros(-(-size // BLOCK), device=device)

    def written(self, rounds: bool) -> tuple[Tensor, Tensor | None]:
        return (self.integers, self.scale) if rounds else (self.values, None)

    def read(self, rounds: bool) -> tuple[Tensor, Tensor | None]:
        return (self.integers.view(torch.int32), self.scale) if rounds else (self.values, None)


def launch(
    matrix: Matrix,
    x: Vector,
    out: Vector,
    end: str,
    tile: Tile,
    *,
    rounds: bool = False,
    squares: Tensor | None = None,
    hidden: Tensor | None = None,
    gain: Tensor | None = None,
    out_squares: Tensor | None = None,
    best: Tensor | None = None,
    position: Tensor | None = None,
    epsilon: float = 0.0,
    temperature: float = 0.0,
    seed: int = 0,
    overlap: bool = False,
) -> None:
    """One ``products.product``; ``rounds`` where the next weight is packed."""
    import triton

    from slimexp.decode import products

    if rounds and tile.rows < BLOCK:  # a scale is of one program's results
        tile = _FOR_PACKED
    rows = matrix.rows // 2 if end == "gated" else matrix.rows
    pack = 32 // matrix.bits if matrix.packed else 1
    block = min(tile.columns // pack, triton.next_power_of_2(matrix.columns // pack))
    steps = triton.cdiv(matrix.columns // pack, block)
    parts = 0 if squares is None else len(squares)
    products.product[(triton.cdiv(rows, tile.rows),)](
        *x.read(matrix.packed), squares, matrix.weight, matrix.scale, matrix.zero, matrix.bias, hidden, gain,
        *out.written(rounds), out_squares, best, position, temperature, seed,
        ROWS=rows, COLS=matrix.columns, GROUP=matrix.columns // matrix.scale.shape[1] if matrix.packed else 0,
        BITS=matrix.bits, PARTS=parts, PARTS_UP=triton.next_power_of_2(max(parts, 1)), EPSILON=epsilon,
        END=end, SAMPLED=temperature > 0, BLOCK_ROWS=tile.rows,
        BLOCK=block * tile.fold, FOLD=tile.fold, AHEAD=min(tile.ahead, steps),
        PDL=overlap, num_warps=tile.warps, **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip
