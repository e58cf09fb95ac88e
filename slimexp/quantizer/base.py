"""Quantizers: a tensor rounded to a grid of integers (or small floats) times scales, with a gradient.

The grid that is trained on is the grid that is stored: ``format.pack`` stores the integers and scales of these very
values and checks that they come back bit for bit.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slimexp.quantizer.grid import BFLOAT16_DIGITS, PER_TENSOR, Granularity, Grid, rounded
from slimexp.quantizer.straight_through import straight_through
from slimexp.weight.attachment import Attachment


class Quantizer(Attachment):
    """Fake quantization: forward rounds to the grid, backward passes the gradient straight through.

    Bengio et al. 2013 (straight-through estimator); Jacob et al. 2018 (integers in training). Zero is on every grid,
    so pruned entries stay zero. Scales have few binary digits, which makes ``(integer - zero) * scale`` exact: in
    float32 at any width, in bfloat16 up to 4 bits. So an artifact holds the trained grid bit for bit.

    Args:
        bits: Width of the integers, one of ``widths``.
        group_size: Number of neighbours in a row that share a scale; ``None`` for the whole row, ``"tensor"`` for all
            rows.
        symmetric: Whether the integer 0 represents zero; otherwise every scale has a zero point (affine).

    Attributes:
        active: Whether ``forward`` rounds; an inactive quantizer is the identity.
        dynamic: Whether the grid is computed from each input also when the model is deployed.
        symmetric_only: Whether there is no affine variant.
        on_activations: Whether it rounds activations as a loaded artifact does.
        on_weights: Whether weights can be stored on its grid.
        compiles: Whether a compiler makes the same gradient of it.
        stored: Type of the numbers that scales multiply, called integers below though they may be small floats.
        scale: Scales of the frozen grid, [..., groups]; ``None`` until then.
        zero: Zero points of the frozen grid, same shape; ``None`` until then and on a symmetric grid.
    """

    widths: ClassVar[range] = range(2, 9)
    dynamic: ClassVar[bool] = False
    symmetric_only: ClassVar[bool] = False
    on_activations: ClassVar[bool] = False
    on_weights: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
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
        """The widths in words, for messages: ``2 to 8``."""
        return f"{cls.widths[0]} to {cls.widths[-1]}" if len(cls.widths) > 2 else " or ".join(map(str, cls.widths))

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer of a grid: all that ``bits`` can hold, but for -128 of 8 symmetric bits."""
        largest = 2 ** (self.bits - 1) - 1
        return (-largest if self.symmetric and self.bits == 8 else -largest - 1), largest

    @property
    def digits(self) -> int:
        """Number of significant binary digits of a scale.

        At 5 bits and more, leaving room for the integer's digits in a bfloat16 product would round the scale so far
        that the largest entry is no longer the largest integer.
        """
        return BFLOAT16_DIGITS - (self.bits - self.symmetric) if self.bits <= 4 else BFLOAT16_DIGITS

    @property
    def scale_bits(self) -> int:
        """Bits of a stored scale: a bfloat16 where products with it are exact in bfloat16, else a float32."""
        return 16 if self.bits <= 4 else 32

    @property
    def frozen(self) -> bool:
        """Whether the grid no longer depends on the input."""
        return self.scale is not None

    def grid(self, x: Tensor) -> Grid:
        """The grid of ``x``, [..., in], or the frozen one."""
        return self.fitted(x.detach()) if self.scale is None else Grid(self.scale, self.zero)

    @abstractmethod
    def fitted(self, x: Tensor) -> Grid:
        """The grid fitted to ``x``, [..., in], with scales [..., groups], see ``Granularity``."""

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Initialize from ``x`` what is learned or calibrated; called once before training.

        Raises:
            ValueError: ``x`` is not finite.
        """
        _check_finite(x)

    @torch.no_grad()
    def freeze(self, x: Tensor) -> None:
        """Fix the grid to that of ``x`` from now on.

        Raises:
            ValueError: ``x`` is not finite.
        """
        _check_finite(x)
        self.keep(self.grid(x))

    def keep(self, grid: Grid) -> None:
        """Fix the grid to ``grid`` from now on."""
        self.scale, self.zero = grid.scale, grid.zero

    def nearest(self, steps: Tensor) -> Tensor:
        """The numbers of type ``stored`` nearest to ``steps``, in the type of ``steps``."""
        return steps.round().clamp(*self.limits)

    def integers(self, x: Tensor, grid: Grid) -> Tensor:
        """Integers of the grid points nearest to ``x``, [..., in] of type ``stored``."""
        return self._steps(x, grid).to(self.stored)

    def values(self, integers: Tensor, grid: Grid) -> Tensor:
        """The numbers that ``integers``, [..., in], represent, in float32."""
        groups = self.granularity.split(integers).float()
        if grid.zero is not None:
            groups = groups - grid.zero.unsqueeze(-1).float()
        return (groups * grid.scale.unsqueeze(-1)).reshape(integers.shape)

    def round(self, x: Tensor, grid: Grid) -> Tensor:
        """The grid points nearest to ``x``, [..., in], in its type."""
        return self.values(self._steps(x, grid), grid).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, lambda x: self.round(x, self.grid(x))) if self.active else x

    def on_columns(self) -> "Quantizer":
        """This quantizer for a run of columns of one group: a scale per row, or one for all if ``per_tensor``."""
        size = PER_TENSOR if self.granularity.per_tensor else None
        return type(self)(**(self.arguments() | {"group_size": size}))

    def arguments(self) -> dict[str, Any]:
        """Arguments that construct this quantizer again, for manifests."""
        return {"bits": self.bits, "group_size": self.granularity.group_size, "symmetric": self.symmetric}

    def scaled(self, low: Tensor, high: Tensor) -> Grid:
        """The grid whose integers span ``low`` to ``high``, both [..., groups]; zero is always on it.

        Symmetric: ``scale = max(|low|, |high|) / 2^(bits-1)``, negative where the positive side reaches further, so
        that the entry of largest magnitude is the least integer either way. All levels are used: between
        1 - 2^(bits-1) and its opposite, as at 8 bits, steps would be 14 % wider at 4 bits, and 33 % at 3.
        Affine: ``scale = (high - low) / (2^bits - 1)``, ``zero = least integer - low / scale``.
        """
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        least, most = self.limits
        # divided by a tensor, as in ``token_scale``: by a number, CUDA and compilers round otherwise than a CPU
        levels = low.new_full((), max(-least, most) if self.symmetric else most - least)
        if self.symmetric:
            scale = self._exact(torch.maximum(-low, high) / levels)
            return Grid(torch.where(high > -low, -scale, scale) if least != -most else scale)
        scale = self._exact((high - low) / levels)
        return Grid(scale, (least - low / scale).round().clamp(least, most).to(torch.int8))

    def _exact(self, scale: Tensor) -> Tensor:
        """Positive scales, rounded to ``digits`` so that their products with integers are exact."""
        scale = rounded(scale, digits=self.digits)
        # a row of zeros has no scale of its own; any is right
        return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, 1.0)

    def _steps(self, x: Tensor, grid: Grid) -> Tensor:
        """Integers of ``x`` as floating-point numbers, [..., in]."""
        steps = self.granularity.split(x).float() / grid.scale.unsqueeze(-1)
        if grid.zero is not None:
            steps = steps + grid.zero.unsqueeze(-1).float()
        return self.nearest(steps).reshape(x.shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Allocate the tensors that exist only once the grid is frozen or learned."""
        for name in [name for name, tensor in (*self._buffers.items(), *self._parameters.items()) if tensor is None]:
            if (stored := state_dict.get(prefix + name)) is not None:
                empty = torch.empty_like(stored)
                setattr(self, name, nn.Parameter(empty) if name in self._parameters else empty)
        super()._load_from_state_dict(state_dict, prefix, *others)


def _check_finite(x: Tensor) -> None:
    if not x.isfinite().all():
        raise ValueError("a grid needs finite numbers, found NaN or infinity")
