"""PACT: static rounding of activations whose clipping bound is learned with the weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slimexp.quantizer.activation import Ranged
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid


class Pact(Ranged):
    """Integers times one scale per layer, the scale such that the largest integer is a learned bound.

    Choi et al. 2018, "PACT: parameterized clipping activation for quantized neural networks", equations 1 to 3: the
    gradient of a clipped entry goes to the bound, that of any other straight to the activation. Entries are signed
    here, where the paper follows ReLU: the gradient of those clipped below has the sign of the smallest integer. The
    bound is learned as a share of its initial value, so that a learning rate means the same in every layer; it starts
    within the range of the calibration inputs, not above it under a penalty that reduces it.

    Args:
        range: Partial of the quantizer whose range of the calibration inputs the bound starts from; it must clip, for
            only clipped entries have a gradient.

    Attributes:
        share: The bound over that at the start, [1], learned; ``None`` before ``start``.
        first: The scale at the start, [1]; ``None`` before ``start``.
    """

    compiles = False

    share: nn.Parameter | None
    first: Tensor | None

    def __init__(
        self,
        *,
        bits: int,
        group_size: int | str | None = None,
        symmetric: bool = True,
        range: Callable[..., Quantizer] | None = None,
    ) -> None:
        super().__init__(bits=bits, group_size=None, symmetric=symmetric, range=range)
        self.register_parameter("share", None)
        self.register_buffer("first", None)

    @property
    def frozen(self) -> bool:
        return self.share is not None or super().frozen

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        Quantizer.start(self, x)  # instead of that of Calibrated, which freezes the grid
        self.first = self.fitted(x).scale
        self.share = nn.Parameter(torch.ones_like(self.first))

    def grid(self, x: Tensor) -> Grid:
        if self.share is None or self.first is None:
            return super().grid(x)
        return Grid(self._exact(self.first * self.share.detach().abs()))

    def forward(self, x: Tensor) -> Tensor:
        if self.share is None or not self.active:
            return super().forward(x)
        values: Tensor = _Clipped.apply(x, self.share, self)
        return values


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor, quantizer: Pact) -> Tensor:
        grid = quantizer.grid(x)
        low, high = quantizer.limits
        ctx.save_for_backward(x < low * grid.scale, x > high * grid.scale)
        ctx.limits, ctx.first = quantizer.limits, quantizer.first
        return quantizer.round(x, grid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        below, above = ctx.saved_tensors
        low, high = ctx.limits
        wide = gradient.float()
        ends = low * torch.where(below, wide, 0.0).sum() + high * torch.where(above, wide, 0.0).sum()
        of_share = ends * ctx.first
        return gradient.masked_fill(below | above, 0), of_share, None
