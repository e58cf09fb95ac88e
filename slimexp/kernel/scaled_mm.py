"""Torch's own product of float8 matrices, which tensor cores from compute capability 8.9 on multiply as they are."""

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, linear, scaled_mm

from slimexp.kernel.base import FLOAT8, Kernel, Packed
from slimexp.kernel.cuda_graph import FLOAT8_FROM, capability
from slimexp.kernel.quantize_input import rounded_rows

_STEP = 16  # what sizes must be multiples of
_PRECISE = (9, 0)  # compute capability on which sums of float32 leave as they are; on others as bfloat16


class ScaledMM(Kernel):
    """``torch.nn.functional.scaled_mm``: weights of one scale per row, inputs rounded to float8.

    Where inputs are left in float, the weight is dequantized at each call: only the decode loop, which reads the
    weight itself, gains from such a layer.
    """

    devices = ("cpu", "cuda")
    takes = (FLOAT8,)
    label = "fp8 torch scaled_mm"
    numbers: Tensor
    scale: Tensor
    bias: Tensor | None

    @classmethod
    def refusal(cls, packed: Packed, device: torch.device) -> str | None:
        if device.type == "cuda" and capability(device) < FLOAT8_FROM:
            return f"this GPU multiplies no float8: that takes compute capability {'.'.join(map(str, FLOAT8_FROM))}"
        return super().refusal(packed, device)

    @classmethod
    def unfit(cls, packed: Packed) -> str | None:
        if packed.scale.shape[1] > 1:
            return "weights must have one scale per row"
        if any(size % _STEP for size in packed.numbers.shape):
            return f"its sizes must be multiples of {_STEP}, got {' and '.join(map(str, packed.numbers.shape))}"
        return None

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self.activation = packed.activation
        if packed.activation is None:
            self.label = "fp8 weights, turned into a matrix at each call"
        self.register_buffer("numbers", packed.numbers.contiguous())
        self.register_buffer("scale", packed.scale.float().contiguous())
        self.register_buffer("bias", None if packed.bias is None else packed.bias.detach().float())

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The dequantized weight [out, in] in ``dtype``."""
        return (self.numbers.float() * self.scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation is None:
            return linear(x, self.matrix(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        numbers, scale = rounded_rows(x.reshape(-1, self.in_features), self.activation, FLOAT8)
        per_row = ScalingType.RowWise
        y = scaled_mm(
            numbers, self.numbers.t(), scale, per_row, self.scale.t(), per_row, output_dtype=_output(x)
        )  # fmt: skip
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def _output(x: Tensor) -> torch.dtype:
    precise = x.dtype == torch.float32 and (not x.is_cuda or capability(x.device) == _PRECISE)
    return torch.float32 if precise else torch.bfloat16
