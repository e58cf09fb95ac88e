"""Torch's own products of bfloat16 inputs with integer weights, which need no compiler."""

import torch
from torch import Tensor

from slimexp.kernel.base import Kernel, Packed

_GROUPS = (32, 64, 128, 256)  # sizes that the product of 4 bits knows
_OUT, _IN = 16, 32  # what both products take at once: of other sizes torch 2.13 reads past the end, or crashes


class WeightOnly8(Kernel):
    """``torch._weight_int8pack_mm``: weights with one scale per row, inputs in bfloat16."""

    label = "int8 weights, torch bfloat16"
    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    @classmethod
    def unfit(cls, packed: Packed) -> str | None:
        if packed.scale.shape[1] > 1 or packed.zero is not None:
            return "weights must have one scale per row and no zero point"
        return _unfit(packed)

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        # A copy: torch 2.13 reads 16 bytes at once and crashes where they are not aligned, as in a file that is mapped.
        self.register_buffer("integers", packed.numbers.clone().contiguous(), persistent=False)
        self.register_buffer("scale", packed.scale.flatten().bfloat16(), persistent=False)
        self.register_buffer("bias", _bias(packed), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.bfloat16().reshape(-1, self.in_features)
        return _outputs(torch._weight_int8pack_mm(rows, self.integers, self.scale), self.bias, x)


class WeightOnly4(Kernel):
    """``torch._weight_int4pack_mm_for_cpu``: weights of at most 4 bits in groups, inputs in bfloat16."""

    label = "int4 weights, torch bfloat16"
    words: Tensor
    grid: Tensor
    bias: Tensor | None

    @classmethod
    def unfit(cls, packed: Packed) -> str | None:
        if packed.bits > 4 or packed.group_size not in _GROUPS:
            return f"weights must have at most 4 bits in groups of {_GROUPS}"
        return _unfit(packed)

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self.group_size = packed.group_size
        zero = torch.zeros_like(packed.scale) if packed.zero is None else packed.zero * packed.scale
        grid = torch.stack([packed.scale, -zero], -1).transpose(0, 1).bfloat16().contiguous()  # [groups, out, 2]
        words = torch._convert_weight_to_int4pack_for_cpu(packed.numbers.to(torch.int32) + 8, 1)
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("bias", _bias(packed), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.bfloat16().reshape(-1, self.in_features)
        return _outputs(torch._weight_int4pack_mm_for_cpu(rows, self.words, self.group_size, self.grid), self.bias, x)


def _unfit(packed: Packed) -> str | None:
    if packed.activation is not None:
        return "inputs must be left in float"
    out, size = packed.numbers.shape
    if out % _OUT or size % _IN:
        return f"its sizes must be multiples of {_OUT} (out) and {_IN} (in), got {out} and {size}"
    return None


def _bias(packed: Packed) -> Tensor | None:
    return None if packed.bias is None else packed.bias.detach().float()


def _outputs(y: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])
