"""Integers of 8 or 4 bits packed into 32-bit words, in the order in which the GPU's threads read them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimexp.kernel.base import Kernel, Packed, rounded_input

CHUNK = 128  # weights of a row that lie together, at most
_LEAST = 32  # below, a thread's 16 bytes would span chunks


def chunk_of(packed: Packed) -> int:
    """Neighbours in a row that are packed together: a group, or a power-of-two part of it."""
    columns, groups = packed.integers.shape[1], packed.scale.shape[1]
    return math.gcd(columns // groups, CHUNK)


class Words(Kernel):
    """A packed layer on a GPU.

    A row is cut into chunks; element ``j * width + i`` of a chunk is field ``j`` of its word ``i``, ``width`` words
    in a chunk. So the threads that hold neighbouring words need neighbouring inputs. Fields hold integers plus half
    their range, 2 to 4 bits in 4 and 5 to 8 bits in 8.

    The decode loop multiplies the words themselves (``products.product``). Called as a layer, as in reading a prompt,
    where arithmetic and not memory is the limit, it turns them into a matrix first.

    Attributes:
        words: int32 [out, chunks, width].
        scale: [out, chunks], or [out, 1] where a row has one; bfloat16 where that loses nothing, else float32.
        zero: Integer that stands for zero, as ``scale``; ``None`` where it is 0.
        bits: Of a field, 8 or 4.
    """

    label = "int words"
    words: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None

    @classmethod
    def refusal(cls, packed: Packed, device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"is for CUDA devices, not {device.type}"
        return cls.unfit(packed)

    @classmethod
    def unfit(cls, packed: Packed) -> str | None:
        """Why ``packed`` cannot be laid out so, on whatever device."""
        if packed.bits > 8:
            return f"holds at most 8 bits, not {packed.bits}"
        if (chunk := chunk_of(packed)) < _LEAST:
            return f"needs groups of a multiple of {_LEAST} weights, and {packed.group_size} leaves chunks of {chunk}"
        return None

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self.bits = 4 if packed.bits <= 4 else 8
        self.activation = packed.activation
        self.register_buffer("words", _laid_out(packed.integers, self.bits, chunk_of(packed)))
        self.register_buffer("scale", _exactly_small(self._per_chunk(packed.scale, packed)))
        zero = packed.zero
        self.register_buffer("zero", None if zero is None else self._per_chunk(zero, packed).to(torch.int8))
        self.register_buffer("bias", packed.bias)

    def _per_chunk(self, per_group: Tensor, packed: Packed) -> Tensor:
        if per_group.shape[1] == 1:
            return per_group.contiguous()
        return per_group.repeat_interleave(packed.group_size // chunk_of(packed), dim=1).contiguous()

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weight as [out, in]."""
        fields = 32 // self.bits
        shifts = torch.arange(fields, device=self.words.device, dtype=torch.int32) * self.bits
        numbers = (self.words.unsqueeze(-2) >> shifts[:, None]) & (2**self.bits - 1)
        numbers = numbers.flatten(-2) - 2 ** (self.bits - 1)
        if self.zero is not None:
            numbers = numbers - self.zero.unsqueeze(-1)
        return (numbers * self.scale.float().unsqueeze(-1)).flatten(-2).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(rounded_input(x, self.activation), self.matrix(x.dtype), bias)


def rounded(layer: nn.Linear, bits: int, group: int | None) -> Packed:
    """A layer's weight rounded to nearest, symmetric: one scale per row, or per ``group`` of its weights."""
    weight = layer.weight.detach().float()
    groups = weight.unflatten(-1, (-1, group or weight.shape[1]))
    scale = (groups.abs().amax(-1) / (2 ** (bits - 1) - 0.5)).clamp_min(1e-8).bfloat16().float()
    integers = (groups / scale.unsqueeze(-1)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    bias = None if layer.bias is None else layer.bias.detach().float()
    return Packed(integers.flatten(-2).to(torch.int8), scale, None, bits, bias, None)


def _laid_out(integers: Tensor, bits: int, chunk: int) -> Tensor:
    """int8 [out, in] -> int32 [out, chunks, width]."""
    fields = 32 // bits
    numbers = (integers.to(torch.int32) + 2 ** (bits - 1)).unflatten(-1, (-1, fields, chunk // fields))
    words = torch.zeros_like(numbers[..., 0, :])
    for field in range(fields):
        words |= numbers[..., field, :] << (bits * field)
    return words.contiguous()


def _exactly_small(scale: Tensor) -> Tensor:
    small = scale.bfloat16()
    return small if torch.equal(small.float(), scale.float()) else scale.float()
