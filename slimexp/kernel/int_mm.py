"""Torch's own product of int8 matrices, which needs no C++ compiler."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from slimexp.kernel.base import Kernel, Packed
from slimexp.kernel.quantize_input import rounded_rows

_LEAST, _STEP = 17, 8  # on a GPU: the fewest rows, and what sizes must be multiples of
_LONGEST = 2**31 // (128 * 128)  # products that an int32 sum can hold


class IntMM(Kernel):
    """``torch._int_mm``: weights with one scale per row, one byte each whatever their bits."""

    devices = ("cpu", "cuda")
    label = "int8 torch._int_mm"
    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    @classmethod
    def refusal(cls, packed: Packed, device: torch.device) -> str | None:
        if device.type == "cuda" and any(size % _STEP for size in packed.numbers.shape):
            sizes = " and ".join(map(str, packed.numbers.shape))
            return f"on a GPU its sizes must be multiples of {_STEP}, got {sizes}"
        return super().refusal(packed, device)

    @classmethod
    def unfit(cls, packed: Packed) -> str | None:
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
        self.register_buffer("integers", packed.numbers.contiguous(), persistent=False)
        self.register_buffer("scale", packed.scale.float().flatten(), persistent=False)
        self.register_buffer("bias", None if packed.bias is None else packed.bias.detach().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        integers, scale = rounded_rows(x.reshape(-1, self.in_features), self.activation, torch.int8)
        if x.is_cuda and (missing := _LEAST - len(integers)) > 0:
            y = torch._int_mm(pad(integers, (0, 0, 0, missing)), self.integers.t())[:-missing]
        else:
            y = torch._int_mm(integers, self.integers.t())
        y = y * scale * self.scale
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)
