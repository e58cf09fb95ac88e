"""What every kernel is: a linear layer that multiplies packed numbers as they are, never dequantized weights.

Which kernel is the fastest for a layer depends on the machine, see ``autotune``.
"""

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

ACTIVATION_BITS = 8
FLOAT8 = torch.float8_e4m3fn


class Packed(NamedTuple):
    """A quantized linear layer: ``y = round(x) W^T + bias`` with ``W = (numbers - zero) * scale``.

    Attributes:
        numbers: Weight [out, in], integers in int8 or float8_e4m3fn.
        scale: float32 [out, groups]; a group is ``in / groups`` neighbours in a row.
        zero: Integer that stands for zero, [out, groups]; ``None`` where it is 0.
        bits: Width of the numbers, 2 to 8.
        bias: float32 [out], or ``None``.
        activation: How the input is rounded to 8 bits, to integers or float8 as the weight is: ``"token"`` for one
            symmetric scale per token, taken from it; a number for one symmetric scale fixed beforehand; ``None`` where
            it is not.
    """

    numbers: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    bias: Tensor | None
    activation: Literal["token"] | float | None

    @property
    def group_size(self) -> int:
        return self.numbers.shape[1] // self.scale.shape[1]

    def weight(self) -> Tensor:
        """The weight as a float32 matrix [out, in]."""
        groups = self.numbers.unflatten(-1, (self.scale.shape[1], -1)).float()
        if self.zero is not None:
            groups = groups - self.zero.float().unsqueeze(-1)
        return (groups * self.scale.unsqueeze(-1)).flatten(-2)

    def to(self, device: torch.device) -> "Packed":
        """The same on ``device``."""
        return Packed(*(one.to(device) if isinstance(one, Tensor) else one for one in self))  # type: ignore[arg-type]


class Kernel(nn.Module):
    """A linear layer that runs one way. Constructed from what ``refusal`` has nothing against.

    Attributes:
        devices: Kinds that it runs on.
        takes: What weights it multiplies, a type of ``Packed.numbers``.
        label: What runs, in words for a record.
        live: Weights, the bias included.
        nonzero: Those of them that are not zero.
        weight: Nothing; transformers' T5 asks its layers for the type of their weight before it calls them.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    takes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8,)
    label: str
    weight = None

    @classmethod
    def refusal(cls, packed: Packed, device: torch.device) -> str | None:
        """Why this kernel cannot run ``packed`` on ``device``; ``None`` if it can."""
        if device.type not in cls.devices:
            return f"it runs on {' and '.join(cls.devices)}, not on {device.type}"
        if packed.numbers.dtype not in cls.takes:
            return f"it multiplies {' and '.join(map(str, cls.takes))}, not {packed.numbers.dtype}"
        return cls.unfit(packed)

    @classmethod
    def unfit(cls, packed: Packed) -> str | None:
        """The same of weights that it takes, whatever the device."""
        return None

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.numbers.shape
        biases = 0 if packed.bias is None else packed.bias.numel()
        counts = packed.zero is None and not packed.numbers.is_floating_point()  # torch 2.13 counts no float8
        values = packed.numbers if counts else packed.weight()
        self.live = values.numel() + biases
        self.nonzero = sum(int(torch.count_nonzero(x)) for x in (values, packed.bias) if x is not None)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of ``x``."""

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.label}"


def token_scale(x: Tensor, low: float, high: float) -> Tensor:
    """[..., in] -> [...]: the scale of a symmetric grid of ``low`` to ``high`` that each row's largest entry fills.

    What is trained (``quantizer.activation.PerToken``) and what is served take it from here. The divisor is a tensor:
    by a number of Python, CUDA multiplies with its rounded reciprocal, and an input halfway between two integers would
    fall to one on a GPU and to the other on a CPU.
    """
    scale = x.abs().amax(-1) / x.new_full((), (high - low) / 2)
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def rounding(x: Tensor, activation: Literal["token"] | float, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs rounded so: numbers of ``kind``, in the type of ``x`` [..., in], and scales, [..., 1] or a scalar."""
    low, high = _range(kind)
    scale = token_scale(x, low, high).unsqueeze(-1) if activation == "token" else x.new_full((), activation)
    steps = (x / scale).clamp(low, high)
    return steps.to(kind).to(x.dtype) if kind.is_floating_point else steps.round(), scale


def _range(kind: torch.dtype) -> tuple[float, float]:
    """Smallest and largest number that inputs are rounded to."""
    limits = torch.finfo(kind) if kind.is_floating_point else torch.iinfo(kind)
    return limits.min, limits.max


def rounded_input(x: Tensor, activation: Literal["token"] | float | None, kind: torch.dtype) -> Tensor:
    """``x`` [..., in] as a layer sees it that rounds its input to ``Packed.activation``'s grid."""
    if activation is None:
        return x
    numbers, scale = rounding(x, activation, kind)
    return numbers * scale
