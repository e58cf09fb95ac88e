"""What every quantizer is: a tensor rounded to a grid of integers (or small floats) times scales, with a gradient.

The grid that is trained on is the grid that is shipped: ``packing.pack`` stores the integers and
scales of these very values and checks that they come back bit for bit.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slimexp.weight.attachment import Attachment

PER_TENSOR = "tensor"  # as a group size: one scale for all entries
BFLOAT16_DIGITS = 8  # binary digits of a bfloat16 significand, the leading one included


@dataclass(frozen=True)
class Granularity:
    """How many neighbours in a row share a scale.

    ==========================  ============  =====================  ===================
    ``group_size``              input         scale                  also called
    ==========================  ============  =====================  ===================
    ``None``, a weight          [out, in]     [out, 1]               per channel
    ``g``, a weight             [out, in]     [out, in / g]          per group
    ``None``, an activation     [..., D]      [..., 1]               per token
    ``"tensor"``                any           [1]                    per tensor
    ==========================  ============  =====================  ===================
    """

    group_size: int | str | None

    def __post_init__(self) -> None:
        if self.per_tensor or self.group_size is None or (isinstance(self.group_size, int) and self.group_size >= 1):
            return
        raise ValueError(
            f"group_size must be >= 1, null for one scale per row, or tensor for one in all, got {self.group_size}"
        )

    @property
    def per_tensor(self) -> bool:
        return self.group_size == PER_TENSOR

    def columns(self, row: int) -> int:
        """Neighbours in a row of so many entries that share a scale."""
        return self.group_size if isinstance(self.group_size, int) else row

    def split(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., groups, in / groups], or [1, entries] where all share a scale.

        Raises:
            ValueError: The group size does not divide the row.
        """
        if self.per_tensor:
            return x.reshape(1, -1)
        size = self.columns(x.shape[-1])
        if x.shape[-1] % size:
            raise ValueError(
                f"group_size must divide the length of a row, got {size} for rows of {x.shape[-1]}: "
                "choose a divisor, or null for one scale per row"
            )
        return x.unflatten(-1, (-1, size))


@dataclass(frozen=True)
class Grid:
    """The numbers that quantized values may have: ``(integer - zero) * scale``.

    Attributes:
        scale: Not 0, float32 [..., groups] (per tensor [1]); negative where the positive side reaches further, see
            ``scaled``.
        zero: Integer that stands for zero, of the same shape; ``None`` where it is 0 (a symmetric grid).
    """

    scale: Tensor
    zero: Tensor | None = None

    def where(self, chosen: Tensor, other: "Grid") -> "Grid":
        """This grid where ``chosen``, [..., groups], else the other one."""
        scale = torch.where(chosen, self.scale, other.scale)
        if self.zero is None or other.zero is None:
            return Grid(scale)
        return Grid(scale, torch.where(chosen, self.zero, other.zero))


class Quantizer(Attachment):
    """Fake quantization: forward rounds to the grid, backward passes the gradient straight through.

    Bengio et al. 2013 (straight-through estimator); Jacob et al. 2018 (integers in training). Zero is on every grid,
    so pruned entries stay zero. Scales have few binary digits, which makes ``(integer - zero) * scale`` exact: in
    float32 at any width, in bfloat16 up to 4 bits. So an artifact holds the trained grid bit for bit.

    Args:
        bits: Width of the integers, one of ``widths``.
        group_size: Neighbours in a row that share a scale; ``None`` for the whole row, ``"tensor"`` for all rows.
        symmetric: Whether the integer 0 stands for zero; else a zero point for every scale does (affine).

    Attributes:
        active: Whether ``forward`` rounds; an inactive quantizer is the identity.
        dynamic: Whether the grid is taken from each input anew also when the model is served.
        symmetric_only: Whether there is no affine variant.
        on_activations: Whether it rounds activations as a loaded artifact does.
        on_weights: Whether its grid is one that weights can be stored on.
        stored: Type of the numbers that scales multiply; "integers" below, though they may be small floats.
    """

    widths: ClassVar[range] = range(2, 9)
    dynamic: ClassVar[bool] = False
    symmetric_only: ClassVar[bool] = False
    on_activations: ClassVar[bool] = False
    on_weights: ClassVar[bool] = True
    stored: ClassVar[torch.dtype] = torch.int8
    scale: Tensor | None
    zero: Tensor | None

    def __init__(self, *, bits: int, group_size: int | str | None, symmetric: bool = True) -> None:
        super().__init__()
        if bits not in self.widths:
            raise ValueError(f"{type(self).__name__}: bits must be {self.span()}, got {bits}")
        if self.symmetric_only and not symmetric:
            raise ValueError(f"{type(self).__name__} is symmetric: set symmetric=true, or choose another quantizer")
        self.bits = bits
        self.granularity = Granularity(group_size)
        self.symmetric = symmetric
        self.active = True
        self.register_buffer("scale", None)
        self.register_buffer("zero", None)

    @classmethod
    def span(cls) -> str:
        """The widths in words."""
        return f"{cls.widths[0]} to {cls.widths[-1]}" if len(cls.widths) > 2 else " or ".join(map(str, cls.widths))

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer of a grid: all that ``bits`` can hold; at 8 bits, symmetric, -128 lies idle."""
        largest = 2 ** (self.bits - 1) - 1
        return (-largest if self.symmetric and self.bits == 8 else -largest - 1), largest

    @property
    def digits(self) -> int:
        """Significant binary digits of a scale.

        At 5 bits and more, leaving room for the integer's digits in a bfloat16 product would round
        the scale so far that the largest entry is no longer the largest integer.
        """
        return BFLOAT16_DIGITS - (self.bits - self.symmetric) if self.bits <= 4 else BFLOAT16_DIGITS

    @property
    def scale_bits(self) -> int:
        """What a stored scale takes: a bfloat16 where products with it are exact in bfloat16, else a float32."""
        return 16 if self.bits <= 4 else 32

    @property
    def frozen(self) -> bool:
        """Whether the grid no longer follows what is quantized."""
        return self.scale is not None

    def grid(self, x: Tensor) -> Grid:
        """The grid of ``x``, [..., in], or the one that was frozen."""
        return self.fitted(x.detach()) if self.scale is None else Grid(self.scale, self.zero)

    @abstractmethod
    def fitted(self, x: Tensor) -> Grid:
        """The grid that suits ``x``: [..., in] -> scales [..., groups], see ``Granularity``."""

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Called once before training; what is learned starts from here.

        Raises:
            ValueError: ``x`` is not finite.
        """
        _check_finite(x)

    @torch.no_grad()
    def freeze(self, x: Tensor) -> None:
        """Keep the grid of ``x`` from now on.

        Raises:
            ValueError: ``x`` is not finite.
        """
        _check_finite(x)
        self.keep(self.grid(x))

    def keep(self, grid: Grid) -> None:
        """Quantize on ``grid`` from now on."""
        self.scale, self.zero = grid.scale, grid.zero

    def nearest(self, steps: Tensor) -> Tensor:
        """The numbers of ``stored`` nearest to ``steps``, in their type."""
        return steps.round().clamp(*self.limits)

    def integers(self, x: Tensor, grid: Grid) -> Tensor:
        """Integers of the grid points nearest to ``x``, [..., in] in the type ``stored``."""
        return self._steps(x, grid).to(self.stored)

    def values(self, integers: Tensor, grid: Grid) -> Tensor:
        """The numbers that ``integers`` [..., in] stand for, float32."""
        groups = self.granularity.split(integers).float()
        if grid.zero is not None:
            groups = groups - grid.zero.unsqueeze(-1).float()
        return (groups * grid.scale.unsqueeze(-1)).reshape(integers.shape)

    def round(self, x: Tensor, grid: Grid) -> Tensor:
        """Nearest grid points of ``x``, [..., in], in its type."""
        return self.values(self._steps(x, grid), grid).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, lambda x: self.round(x, self.grid(x))) if self.active else x

    def on_columns(self) -> "Quantizer":
        """The same for columns that share a scale: one in each row, or one in all where the granularity is so."""
        size = PER_TENSOR if self.granularity.per_tensor else None
        return type(self)(**(self.arguments() | {"group_size": size}))

    def arguments(self) -> dict[str, Any]:
        return {"bits": self.bits, "group_size": self.granularity.group_size, "symmetric": self.symmetric}

    def scaled(self, low: Tensor, high: Tensor) -> Grid:
        """The grid whose integers span ``low`` to ``high``, both [..., groups]; zero is always on it.

        Symmetric: ``scale = max(|low|, |high|) / 2^(bits-1)``, negative where the positive side reaches further, so
        that the largest entry is the least integer either way. No level lies idle: between 1 - 2^(bits-1) and its
        opposite, as at 8 bits, steps would be 14 % wider at 4 bits, and 33 % at 3.
        Affine: ``scale = (high - low) / (2^bits - 1)``, ``zero = least integer - low / scale``.
        """
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        least, most = self.limits
        if self.symmetric:
            largest = torch.maximum(-low, high) / max(-least, most)
            scale = self._exact(largest)
            return Grid(torch.where(high > -low, -scale, scale) if least != -most else scale)
        scale = self._exact((high - low) / (most - least))
        return Grid(scale, (least - low / scale).round().clamp(least, most).to(torch.int8))

    def _exact(self, scale: Tensor) -> Tensor:
        """Positive scales, rounded to ``digits``."""
        scale = rounded(scale, digits=self.digits)
        # a row of zeros has no scale of its own; any will do
        return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, 1.0)

    def _steps(self, x: Tensor, grid: Grid) -> Tensor:
        """Integers of ``x`` as floating-point numbers, [..., in]."""
        steps = self.granularity.split(x).float() / grid.scale.unsqueeze(-1)
        if grid.zero is not None:
            steps = steps + grid.zero.unsqueeze(-1).float()
        return self.nearest(steps).reshape(x.shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Make room for what is there only once it is frozen or learned."""
        for name in [name for name, tensor in (*self._buffers.items(), *self._parameters.items()) if tensor is None]:
            if (stored := state_dict.get(prefix + name)) is not None:
                room = torch.empty_like(stored)
                setattr(self, name, nn.Parameter(room) if name in self._parameters else room)
        super()._load_from_state_dict(state_dict, prefix, *others)


def rounded(x: Tensor, *, digits: int) -> Tensor:
    """``x`` to so many significant binary digits, to nearest."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**digits).round(), exponent - digits)


def _check_finite(x: Tensor) -> None:
    if not x.isfinite().all():
        raise ValueError("a grid needs finite numbers, found NaN or infinity")


def straight_through(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function(x)``, bit for bit, with the gradient of the identity."""
    return _StraightThrough.apply(x, function)


class _StraightThrough(torch.autograd.Function):
    # x + (f(x) - x).detach() would be simpler and is off by a rounding: the grid must be exact

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
