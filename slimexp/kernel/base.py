"""The base class of kernels: linear layers that multiply packed numbers as they are, never dequantized weights.

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
        """The layer with its tensors on ``device``."""
        return Packed(*(part.to(device) if isinstance(part, Tensor) else part for part in self))  # type: ignore[arg-type]


class Kernel(nn.Module):
    """A linear layer on one kernel, constructed from a layer that ``refusal`` returns ``None`` for.

    Attributes:
        devices: Types of devices that it runs on.
        takes: Types of ``Packed.numbers`` that it multiplies.
        label: Name of what runs, for records.
        live: Number of weights, the bias included.
        nonzero: Number of weights that are not zero, the bias included.
        weight: Always ``None``: transformers' T5 reads the type of its layers' ``weight`` before it calls them.
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
        """Why this kernel cannot run ``packed`` on any device; ``None`` if it can. The type of its numbers fits."""
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
        """Apply the layer: [..., in] -> [..., out], in the type of ``x``."""

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.label}"


def token_scale(x: Tensor, low: float, high: float) -> Tensor:
    """Scales [...] of symmetric grids of ``low`` to ``high`` that the largest entry of each row of ``x`` fills.

    Training (``quantizer.activation.PerToken``) and serving share it. The divisor is a tensor:
    by a number of Python, CUDA multiplies with its rounded reciprocal, and an input halfway between two integers would
    fall to one on a GPU and to the other on a CPU.
    """
    scale = x.abs().amax(-1) / x.new_full((), (high - low) / 2)
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def rounding(x: Tensor, activation: Literal["token"] | float, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round inputs to ``kind``: numbers, in the type of ``x`` [..., in], and their scales, [..., 1] or a scalar."""
    low, high = _range(kind)
    scale = token_scale(x, low, high).unsqueeze(-1) if activation == "token" else x.new_full((), activation)
    steps = (x / scale).clamp(low, high)
    return steps.to(kind).to(x.dtype) if kind.is_floating_point else steps.round(), scale


def _range(kind: torch.dtype) -> tuple[float, float]:
    """Smallest and largest number that inputs are rounded to."""
    limits = torch.finfo(kind) if kind.is_floating_point else torch.iinfo(kind)
    return limits.min, limits.max


def rounded_input(x: Tensor, activation: Literal["token"] | float | None, kind: torch.dtype) -> Tensor:
    """``x`` [..., in] on the grid of ``activation`` (``Packed.activation``), dequantized; unchanged for ``None``."""
    if activation is None:
        return x
    numbers, scale = rounding(x, activation, kind)
    return numbers * scale
