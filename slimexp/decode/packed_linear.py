"""A linear layer of integers of 8 or 4 bits, packed into 32-bit words in the order in which the GPU multiplies them."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.kernel.base import Kernel, Packed
from slimexp.kernel.cuda_graph import has_triton

BLOCK = 32  # inputs that share a scale
_PART = 1024  # integers that one program of a Triton kernel unpacks


class PackedLinear(Kernel):
    """A packed layer on a GPU, its inputs rounded to int8 with one scale per 32 neighbours.

    With 8 bits, a word holds four neighbours. With 4 bits, 32 neighbours take four words: byte b of word i holds
    integer 4 i + b in its lower half and integer 16 + 4 i + b in its upper half. So four neighbouring inputs meet four
    weights in one instruction. Fields are signed; weights of 2 to 4 bits take 4 and those of 5 to 8 bits take 8.

    The decode loop multiplies the packed weight itself (``triton_gemv.gemv``). Called as a layer, as in reading a
    prompt, where arithmetic and not memory is the limit, it unpacks the weight first.

    Attributes:
        weight_packed: int32 [out, in * bits / 32].
        scale: [out, groups]; bfloat16 where that is exact, else float32.
        zero: Integer that stands for zero, in the shape of ``scale``; ``None`` where it is 0.
        bits: Width of a packed integer, 8 or 4.
    """

    devices = ("cuda",)
    label = "int words, inputs int8"
    weight_packed: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None

    @classmethod
    def unfit(cls, packed: Packed) -> str | None:
        if packed.bits > 8:
            return f"holds at most 8 bits, not {packed.bits}"
        if packed.group_size % BLOCK:
            return f"needs groups of a multiple of {BLOCK} weights, not of {packed.group_size}"
        if isinstance(packed.activation, float):
            return "rounds inputs by their own largest, not by a scale fixed beforehand"
        return None

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self.bits: Literal[4, 8] = 4 if packed.bits <= 4 else 8
        self.register_buffer("weight_packed", _pack(packed.numbers, self.bits))
        self.register_buffer("scale", _compact(packed.scale.contiguous()))
        self.register_buffer("zero", None if packed.zero is None else packed.zero.to(torch.int8).contiguous())
        self.register_buffer("bias", packed.bias)

    @property
    def group(self) -> int:
        """Number of neighbouring weights of a row that share a scale."""
        return self.in_features // self.scale.shape[1]

    def packed(self) -> Packed:
        """The layer's integers, unpacked; how the layer was trained to round its inputs is lost."""
        numbers = self.weight_packed.view(torch.int8)
        if self.bits == 4:
            halves = numbers.unflatten(-1, (-1, 1, 16))
            numbers = torch.cat([halves << 4 >> 4, halves >> 4], -2).flatten(-3)
        return Packed(numbers, self.scale.float(), self.zero, self.bits, self.bias, None)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The dequantized weight [out, in] in ``dtype``."""
        if not _in_one_kernel(self.weight_packed):
            return self.packed().weight().to(dtype)
        import triton

        from slimexp.decode.triton_unpack import unpack

        matrix = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.weight_packed.device)
        unpack[(self.out_features, triton.cdiv(self.in_features, _PART))](
            self.weight_packed.view(torch.int8), self.scale, self.zero, matrix,
            COLS=self.in_features, GROUPS=self.scale.shape[1], BITS=self.bits, BLOCK=_PART,
        )  # fmt: skip
        return matrix

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(rounded_in_blocks(x), self.matrix(x.dtype), bias)


def rounded_in_blocks(x: Tensor) -> Tensor:
    """``x`` [..., in] rounded to int8, each 32 neighbours by the largest of them."""
    if _in_one_kernel(x):
        import triton

        from slimexp.decode.triton_unpack import round_blocks

        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        round_blocks[(triton.cdiv(x.numel(), _PART),)](x, out, x.numel(), BLOCK=_PART)
        return out
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    step = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((blocks / step).round() * step).flatten(-2).to(x.dtype)


def _in_one_kernel(x: Tensor) -> bool:
    """Whether a Triton kernel does the work in one pass."""
    return x.is_cuda and x.numel() > 0 and has_triton()


def _pack(integers: Tensor, bits: int) -> Tensor:
    """Pack integers: int8 [out, in] -> int32 [out, in * bits / 32]."""
    if bits == 4:
        below, above = integers.unflatten(-1, (-1, 2, BLOCK // 2)).unbind(-2)
        integers = (below & 15 | above << 4).flatten(-2)
    return integers.contiguous().view(torch.int32)


def _compact(scale: Tensor) -> Tensor:
    """``scale`` in bfloat16 where that is exact, else in float32."""
    small = scale.bfloat16()
    return small if torch.equal(small.float(), scale.float()) else scale.float()
