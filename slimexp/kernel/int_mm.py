"""Torch's own product of int8 matrices, which needs no compiler."""

import torch
from torch import Tensor

from slimexp.kernel.base import Kernel, Packed, rounding

_LONGEST = 2**31 // (128 * 128)  # products that an int32 can add up


class IntMM(Kernel):
    """``torch._int_mm``: weights of one scale per row, whatever their bits, lie in a byte each."""

    label = "int8 torch._int_mm"
    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    @classmethod
    def refusal(cls, packed: Packed, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it runs on a CPU, not on {device.type}"
        if packed.activation is None:
            return "inputs must be rounded to integers, and these are left in float"
        if packed.scale.shape[1] > 1 or packed.zero is not None:
            return "weights must have one scale per row and no zero point"
        if packed.group_size > _LONGEST:
            return f"rows must be at most {_LONGEST} long, got {packed.group_size}"
        return None

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        assert packed.activation is not None
        self.activation = packed.activation
        self.register_buffer("integers", packed.integers.contiguous(), persistent=False)
        self.register_buffer("scale", packed.scale.float().flatten(), persistent=False)
        self.register_buffer("bias", None if packed.bias is None else packed.bias.detach().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.float().reshape(-1, self.in_features)
        integers, scale = rounding(rows, self.activation)
        scale = scale + 0 * integers.sum(-1, keepdim=True)  # as an integer NaN would pass for a number
        y = torch._int_mm(integers.to(torch.int8), self.integers.t()) * scale * self.scale
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)
