"""Products of 8-bit and 4-bit weights with inputs rounded to 8 bits, compiled from ``vnni.cpp`` for CPUs."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from slimexp.kernel import build
from slimexp.kernel.base import Kernel, Packed

_LANES, _QUAD = 16, 4  # as in vnni.cpp
_LONGEST = 2**31 // (255 * 128)  # products that an int32 sum can hold
_TOKEN, _GROUP, _STATIC = 0, 1, 2


class Vnni(Kernel):
    """``vnni.cpp``: rounds the input, multiplies integers, rescales, all in one call.

    The input is rounded as the layer was trained to (``Packed.activation``). Where it was trained with float inputs,
    they are rounded to 8 bits with one scale per group of the weight, which the label says.
    """

    label = "integer VNNI"

    @classmethod
    def unfit(cls, packed: Packed) -> str | None:
        if packed.group_size > _LONGEST:
            return f"groups must be at most {_LONGEST} long, got {packed.group_size}"
        return build.failure()

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self.bits = 4 if packed.bits <= 4 else 8
        fixed = packed.activation if isinstance(packed.activation, float) else 0.0
        activation = {"token": _TOKEN, None: _GROUP}.get(packed.activation, _STATIC)  # type: ignore[arg-type]
        groups, offset = packed.scale.shape[1], 2 ** (packed.bits - 1)
        zero = torch.full_like(packed.scale, offset, dtype=torch.int32)
        if packed.zero is not None:
            zero += packed.zero.to(torch.int32)
        unsigned = (packed.numbers.to(torch.int16) + offset).to(torch.uint8)
        self.register_buffer("integers", _in_panels(unsigned.unflatten(-1, (groups, -1)), self.bits), persistent=False)
        self.register_buffer("scale", _lanes(packed.scale.float()), persistent=False)
        self.register_buffer("zero", _lanes(zero), persistent=False)
        bias = torch.zeros(self.out_features) if packed.bias is None else packed.bias.detach().float()
        self.register_buffer("bias", pad(bias, (0, -self.out_features % _LANES)), persistent=False)
        # in a tuple: a module's attribute look-ups take as long as a small product
        self._operands = (
            self.integers, self.scale, self.zero, self.bias, self.out_features, self.bits, activation, fixed,
        )  # fmt: skip
        self.label = f"int{self.bits} {'AVX512-VNNI' if build.has_vnni() else 'portable C++'}" + (
            ", inputs rounded to int8" if packed.activation is None else ""
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.slimexp.linear.default(x.float(), *self._operands)
        return y.to(x.dtype)


def _in_panels(x: Tensor, bits: int) -> Tensor:
    """Reorder integers: [out, groups, in / groups] -> [panels, groups, quads, 64]; two quads of 4 bits share a byte."""
    step = _QUAD if bits == 8 else 2 * _QUAD
    out, _, size = x.shape
    x = pad(x, (0, -size % step, 0, 0, 0, -out % _LANES))
    x = x.unflatten(0, (-1, _LANES)).unflatten(-1, (-1, _QUAD)).permute(0, 2, 3, 1, 4)
    if bits == 4:
        x = x[:, :, 0::2] | (x[:, :, 1::2] << 4)
    return x.flatten(-2).contiguous()


def _lanes(x: Tensor) -> Tensor:
    """Reorder scales or zero points: [out, groups] -> [panels, groups, 16]."""
    x = pad(x, (0, 0, 0, -x.shape[0] % _LANES))
    return x.unflatten(0, (-1, _LANES)).transpose(1, 2).contiguous()
