"""Operands of the fused kernels: matrices, the vectors between them, and how a product is tiled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from slimexp.decode.packed_linear import BLOCK, PackedLinear
from slimexp.kernel.base import Packed
from slimexp.kernel.scaled_mm import ScaledMM

Kind = Literal["dense", "fp8", "int8", "int4"]


@dataclass(frozen=True)
class Tile:
    """How the product of a matrix and a vector is divided among programs of the Triton kernel.

    Attributes:
        rows: Rows of the matrix that one program multiplies.
        columns: Columns that a program reads at once, a power of two.
        warps: Warps of a program.
        fold: Number of packed rows that are read beside each other, for rows shorter than what a warp reads at once, or
            no multiple of it; ``columns`` of each are read.
        ahead: Number of such reads that are on their way at once.
    """

    rows: int
    columns: int
    warps: int
    fold: int = 1
    ahead: int = 1


@dataclass
class Matrix:
    """One weight, or several that read the same input, stacked by rows.

    Attributes:
        weight: [rows, columns] dense or float8, or packed int32 [rows, columns * bits / 32].
        kind: Type of the weight's numbers.
        scale: [rows, groups] of a quantized weight, else ``None``.
        zero: Integer that stands for zero, in the shape of ``scale``; ``None`` where it is 0.
        bias: [rows], or ``None``.
    """

    weight: Tensor
    kind: Kind
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
        """Whether the weight is packed integers."""
        return self.kind in ("int8", "int4")

    @property
    def bits(self) -> int:
        """Width of a packed integer; 0 where the weight is not packed."""
        return {"int8": 8, "int4": 4}.get(self.kind, 0)

    @property
    def bytes(self) -> int:
        """Bytes of the matrix that a decode step reads."""
        tensors = (self.weight, self.scale, self.zero, self.bias)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def stacked(layers: Sequence[nn.Module], dtype: torch.dtype) -> Matrix:
    """Stack the weights of ``layers`` into one matrix; the layers' own weights become views of its memory.

    Layers that are packed differently keep their weights besides, and the matrix has the smallest kind that holds all
    of them: packed with the most bits and the smallest groups, or dense in ``dtype``, which rounds dequantized weights.

    Args:
        layers: Layers that read the same input, in the order of the matrix's rows.
        dtype: Type of a dense matrix.
    """
    if len({_form(layer) for layer in layers}) > 1:
        layers = _alike(layers, dtype)
    first = layers[0]
    bias = _joined_biases(layers)
    if isinstance(first, PackedLinear):
        kind: Kind = "int4" if first.bits == 4 else "int8"
        zero = _joined_or_none(layers, "zero")
        return Matrix(_joined(layers, "weight_packed"), kind, _joined(layers, "scale"), zero, bias)
    if isinstance(first, ScaledMM):
        return Matrix(_joined(layers, "numbers"), "fp8", _joined(layers, "scale"), None, bias)
    return Matrix(_joined(layers, "weight"), "dense", None, None, bias)


def _form(layer: nn.Module) -> tuple[object, ...]:
    """A key that is equal for layers whose weights can be stacked."""
    return (
        (type(layer), layer.bits, layer.group, layer.zero is None)
        if isinstance(layer, PackedLinear)
        else (type(layer),)
    )


def _alike(layers: Sequence[nn.Module], dtype: torch.dtype) -> Sequence[nn.Module]:
    """``layers`` in one form: packed with the most bits and the smallest groups, or all dense."""
    packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
    if len(packed) < len(layers):
        return [_dense(layer, dtype) for layer in layers]
    bits, group = max(layer.bits for layer in packed), math.gcd(*(layer.group for layer in packed))
    affine = any(layer.zero is not None for layer in packed)
    return [_widened(layer.packed(), bits, group, affine) for layer in packed]


def _dense(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return layer
    assert isinstance(layer, PackedLinear | ScaledMM)
    dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(layer.matrix(dtype), requires_grad=False)
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias, requires_grad=False)
    return dense


def _widened(packed: Packed, bits: int, group: int, affine: bool) -> PackedLinear:
    """The same integers packed with ``bits`` bits, and a scale for each ``group`` of them."""
    times = packed.group_size // group
    zero = torch.zeros_like(packed.scale, dtype=torch.int8) if packed.zero is None and affine else packed.zero
    scale = packed.scale.repeat_interleave(times, -1)
    return PackedLinear(
        packed._replace(bits=bits, scale=scale, zero=None if zero is None else zero.repeat_interleave(times, -1))
    )


def _joined_or_none(layers: Sequence[nn.Module], name: str) -> Tensor | None:
    return None if getattr(layers[0], name) is None else _joined(layers, name)


def _joined_biases(layers: Sequence[nn.Module]) -> Tensor | None:
    """The stacked biases, zeros for a layer that has none beside others that have one; ``None`` where none has one."""
    biases: list[Tensor | None] = [layer.bias for layer in layers]  # type: ignore[misc]
    there = next((bias for bias in biases if bias is not None), None)
    if there is None:
        return None
    if all(bias is not None for bias in biases):
        return _joined(layers, "bias")
    sizes = [int(layer.out_features) for layer in layers]  # type: ignore[arg-type]
    each = zip(biases, sizes, strict=True)
    return torch.cat([there.data.new_zeros(size) if bias is None else bias.data for bias, size in each])


def _joined(layers: Sequence[nn.Module], name: str) -> Tensor:
    tensors = [getattr(layer, name).data for layer in layers]
    if len(tensors) == 1:
        return tensors[0].contiguous()
    joined = torch.cat(tensors)
    for layer, part in zip(layers, joined.split([len(tensor) for tensor in tensors]), strict=True):
        getattr(layer, name).data = part
    return joined


# The fastest of ``benchmarks.decode_large --tune`` on an H200; "small" is "residual" on rows of less than 4096 columns.
_TILES: dict[Kind, dict[str, Tile]] = {
    "dense": {
        "plain": Tile(32, 256, 16, 1, 7), "gated": Tile(2, 1024, 4, 1, 3), "small": Tile(32, 256, 16, 1, 5),
        "residual": Tile(32, 256, 16, 1, 7), "head": Tile(4, 1024, 4, 1, 3),
    },
    "fp8": {
        "plain": Tile(16, 512, 8, 1, 5), "gated": Tile(32, 512, 16, 1, 1), "small": Tile(8, 1024, 4, 1, 3),
        "residual": Tile(8, 512, 8, 1, 7), "head": Tile(4, 512, 4, 1, 5),
    },
    "int8": {
        "plain": Tile(16, 256, 8, 2, 10), "gated": Tile(32, 512, 8, 1, 2), "small": Tile(32, 512, 8, 1, 5),
        "residual": Tile(32, 512, 16, 1, 10), "head": Tile(64, 512, 8, 1, 2),
    },
    "int4": {
        "plain": Tile(32, 1024, 8, 1, 3), "gated": Tile(32, 1024, 8, 1, 2), "small": Tile(32, 1024, 16, 1, 3),
        "residual": Tile(32, 1024, 8, 1, 5), "head": Tile(32, 512, 8, 2, 3),
    },
}  # fmt: skip
_FOR_PACKED = Tile(BLOCK, 256, 16, 1, 2)  # for a dense weight before a packed one


def tile_of(matrix: Matrix, epilogue: str, rounds: bool = False) -> Tile:
    """The tile of a product by its epilogue; ``rounds`` where the next weight is packed."""
    tile = _TILES[matrix.kind]["small" if epilogue == "residual" and matrix.columns < 4096 else epilogue]
    if rounds and tile.rows < BLOCK:  # a scale is of one program's results
        return _TILES[matrix.kind]["gated"] if matrix.packed else _FOR_PACKED
    return tile


def programs(matrix: Matrix, epilogue: str, rounds: bool = False) -> int:
    """Number of programs of the kernel that multiplies ``matrix``; each stores a sum of squares, or a best token."""
    return -(-matrix.rows // tile_of(matrix, epilogue, rounds).rows)


class Vector:
    """A vector that one kernel writes and the next reads: [size] floats, or int8 with one scale per 32 neighbours."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.integers = torch.zeros(-(-size // BLOCK) * BLOCK, dtype=torch.int8, device=device)
        self.scale = torch.zeros(-(-size // BLOCK), device=device)

    def written(self, rounds: bool) -> tuple[Tensor, Tensor | None]:
        """Values and scale as the writing kernel takes them."""
        return (self.integers, self.scale) if rounds else (self.values, None)

    def read(self, rounds: bool) -> tuple[Tensor, Tensor | None]:
        """Values and scale as the reading kernel takes them; int8 values as 32-bit words."""
        return (self.integers.view(torch.int32), self.scale) if rounds else (self.values, None)


def launch(
    matrix: Matrix,
    x: Vector,
    out: Vector,
    epilogue: str,
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
    """Launch ``triton_gemv.gemv``: a product and its epilogue; ``rounds`` where the next weight is packed."""
    import triton

    from slimexp.decode import triton_gemv

    rows = matrix.rows // 2 if epilogue == "gated" else matrix.rows
    pack = 32 // matrix.bits if matrix.packed else 1
    block = min(tile.columns // pack, triton.next_power_of_2(matrix.columns // pack))
    steps = triton.cdiv(matrix.columns // pack, block)
    parts = 0 if squares is None else len(squares)
    triton_gemv.gemv[(triton.cdiv(rows, tile.rows),)](
        *x.read(matrix.packed), squares, matrix.weight, matrix.scale, matrix.zero, matrix.bias, hidden, gain,
        *out.written(rounds), out_squares, best, position, temperature, seed,
        ROWS=rows, COLS=matrix.columns, GROUP=matrix.columns // matrix.scale.shape[1] if matrix.packed else 0,
        BITS=matrix.bits, PARTS=parts, PARTS_UP=triton.next_power_of_2(max(parts, 1)), EPSILON=epsilon,
        EPILOGUE=epilogue, SAMPLED=temperature > 0, BLOCK_ROWS=tile.rows,
        BLOCK=block * tile.fold, FOLD=tile.fold, AHEAD=min(tile.ahead, steps),
        PDL=overlap, num_warps=tile.warps, **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip
