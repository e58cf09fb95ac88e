"""The fallback of every layer: a floating-point product with its dequantized weight."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from slimexp.kernel.base import FLOAT8, Kernel, Packed
from slimexp.kernel.quantize_input import rounded_values


class Dense(Kernel):
    """A floating-point product that runs everywhere; inputs are rounded as the layer was trained to."""

    devices = ("cpu", "cuda")
    takes = (torch.int8, FLOAT8)
    dtype: ClassVar[torch.dtype]
    dequantized: Tensor
    bias: Tensor | None

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self.activation, self.kind = packed.activation, packed.numbers.dtype
        self.register_buffer("dequantized", packed.weight().to(self.dtype), persistent=False)
        self.register_buffer("bias", None if packed.bias is None else packed.bias.detach().to(self.dtype), False)

    def forward(self, x: Tensor) -> Tensor:
        rounded = rounded_values(x, self.activation, self.kind, self.dtype)
        return linear(rounded, self.dequantized, self.bias).to(x.dtype)


class DenseFloat32(Dense):
    """The fallback in float32."""

    label = "dense float32"
    dtype = torch.float32


class DenseBfloat16(Dense):
    """The fallback in bfloat16."""

    label = "dense bfloat16"
    dtype = torch.bfloat16
