"""What every kernel is: a linear layer that multiplies packed integers as they are, never dequantized weights.

Which kernel is the fastest for a layer depends on the machine; see ``race``.
"""

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

ACTIVATION_BITS = 8


class Packed(NamedTuple):
    """A quantized linear layer: ``y = round(x) W^T + bias`` with ``W = (integers - zero) * scale``.

    Attributes:
        integers: Weight, int8 [out, in].
        scale: float32 [out, groups]; a group is ``in / groups`` neighbours in a row.
        zero: Integer that stands for zero, [out, groups]; ``None`` where it is 0.
        bits: Width of the integers, 2 to 8.
        bias: float32 [out], or ``None``.
        activation: How the input is rounded to 8 bits: ``"token"`` for one symmetric scale per token, taken from
            it (``quantizer.token``); a number for one symmetric scale fixed beforehand; ``None`` where it is not.
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    bias: Tensor | None
    activation: Literal["token"] | float | None

    @property
    def group_size(self) -> int:
        return self.integers.shape[1] // self.scale.shape[1]

    def weight(self) -> Tensor:
        """The weight as a float32 matrix [out, in]."""
        groups = self.integers.unflatten(-1, (self.scale.shape[1], -1)).float()
        if self.zero is not None:
            groups = groups - self.zero.float().unsqueeze(-1)
        return (groups * self.scale.unsqueeze(-1)).flatten(-2)


class Kernel(nn.Module):
    """A linear layer that runs one way. Constructed from what ``refusal`` has nothing against.

    Attributes:
        label: What runs, in words for a record.
        live: Weights, the bias included.
        nonzero: Those of them that are not zero.
        weight: Nothing; transformers' T5 asks its layers for the type of their weight before it calls them.
    """

    label: str
    weight = None

    @classmethod
    @abstractmethod
    def refusal(cls, packed: Packed, device: torch.device) -> str | None:
        """Why this kernel cannot run ``packed`` on ``device``; ``None`` if it can."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.integers.shape
        biases = 0 if packed.bias is None else packed.bias.numel()
        values = packed.integers if packed.zero is None else packed.weight()
        self.live = values.numel() + biases
        self.nonzero = sum(int(torch.count_nonzero(x)) for x in (values, packed.bias) if x is not None)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of ``x``."""

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.label}"


def token_scale(x: Tensor, low: float, high: float) -> Tensor:
    """[..., in] -> [...]: the scale of a symmetric grid of ``low`` to ``high`` that each row's largest entry fills.

    What is trained (``quantizer.activation.PerToken``) and what is served take it from here.
    """
    scale = x.abs().amax(-1) / ((high - low) / 2)
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def rounding(x: Tensor, activation: Literal["token"] | float) -> tuple[Tensor, Tensor]:
    """The integers, in the type of ``x`` [..., in], and the scale, [..., 1] or a scalar, of inputs rounded so."""
    low, high = -(2 ** (ACTIVATION_BITS - 1)), 2 ** (ACTIVATION_BITS - 1) - 1
    if activation == "token":
        scale = token_scale(x, low, high).unsqueeze(-1)
    else:
        scale = torch.tensor(activation, dtype=x.dtype, device=x.device)
    return (x / scale).clamp(low, high).round(), scale


def rounded_input(x: Tensor, activation: Literal["token"] | float | None) -> Tensor:
    """``x`` [..., in] as a layer sees it that rounds its input to ``Packed.activation``'s grid."""
    if activation is None:
        return x
    integers, scale = rounding(x, activation)
    return integers * scale
