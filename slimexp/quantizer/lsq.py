"""LSQ: step sizes that are learned with the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from slimexp.quantizer.grid import Grid
from slimexp.quantizer.least_error import LeastError

_LARGEST_CHANGE = 10.0  # of a step's logarithm since the start: keeps steps finite where training diverges


class Lsq(LeastError):
    """A learned scale per row or group, initialized by ``start``.

    Esser et al. 2020, "Learned step size quantization": within the grid the step's gradient is ``round(w/s) - w/s``,
    outside it is the outermost integer (equation 3); either is scaled by ``1 / sqrt(N Q)``, N entries to a scale and
    Q the largest integer (section 2.2). The weight's gradient is that of the identity within the grid and 0 outside
    (equation 5). Three things differ:

    - The step starts at the least squared error, as in LSQ+ (Bhalgat et al. 2020), and below 8 bits takes the sign
      that lets the side that reaches further use the integer that the other side lacks. The paper's
      ``2 mean |w| / sqrt(Q)`` is about twice as wide for groups of 64, which 64 training steps do not correct.
    - The trained parameter is the step's logarithm over ``rate``: under Adam, whose updates do not depend on the
      gradient's size, every step changes by the same share of itself, at most ``rate`` times the learning rate.
    - Steps are rounded to a few binary digits, like every scale, with the gradient passed straight through.

    On activations, all entries share one step: with it the clipping is learned, as in PACT (Choi et al. 2018), where
    only clipped entries have a gradient.

    Args:
        candidates: Number of ratios tried at the start, see ``LeastError``.
        smallest: The smallest ratio, see ``LeastError``.
        rate: Learning rate of steps relative to that of weights, > 0.

    Attributes:
        first: The steps at the start, flat; ``None`` before ``start``.
        moved: ``log(step / first) / rate``, learned; flat so that optimizers do not decay it; ``None`` before
            ``start``.
    """

    compiles = False

    first: Tensor | None
    moved: nn.Parameter | None
    symmetric_only = True
    on_activations = True

    def __init__(
        self,
        *,
        bits: int,
        group_size: int | str | None,
        symmetric: bool = True,
        candidates: int,
        smallest: float,
        rate: float,
    ) -> None:
        super().__init__(
            bits=bits, group_size=group_size, symmetric=symmetric, candidates=candidates, smallest=smallest
        )
        if rate <= 0:
            raise ValueError(f"rate must be > 0, got {rate}")
        self.rate = rate
        self.register_buffer("first", None)
        self.register_parameter("moved", None)

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def scaled(self, low: Tensor, high: Tensor) -> Grid:
        grid = super().scaled(low, high)
        return grid if self.bits < 8 else Grid(grid.scale.abs())  # kernels for activations need positive scales

    def grid(self, x: Tensor) -> Grid:
        return super().grid(x) if self.moved is None or self.frozen else self.learned(x, self.moved.detach())

    def learned(self, x: Tensor, moved: Tensor) -> Grid:
        """The grid of ``x``, [..., in], with the learned steps of its rows or groups, or the one of all entries."""
        assert self.first is not None
        share = (self.rate * moved).clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE).exp()
        scale = self._exact(self.first.abs() * share) * self.first.sign()
        return Grid(scale.view(-1 if scale.numel() == 1 else (*x.shape[:-1], -1)))

    def start(self, x: Tensor) -> None:
        super().start(x)
        self.first = self.fitted(x).scale.flatten()
        self.moved = nn.Parameter(torch.zeros_like(self.first))

    def forward(self, x: Tensor) -> Tensor:
        if self.moved is None or self.frozen or not self.active:
            return super().forward(x)
        values: Tensor = _Learned.apply(x, self.moved, self)
        return values

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"rate": self.rate}


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, moved: Tensor, quantizer: Lsq) -> Tensor:
        grid = quantizer.learned(x, moved)
        integers = quantizer.integers(x, grid)
        ctx.save_for_backward(quantizer.granularity.split(x).float() / grid.scale.unsqueeze(-1), integers, grid.scale)
        ctx.quantizer = quantizer
        return quantizer.values(integers, grid).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        exact, integers, scale = ctx.saved_tensors
        low, high = ctx.quantizer.limits
        inside = (exact >= low) & (exact <= high)
        upstream = ctx.quantizer.granularity.split(gradient)
        slope = ctx.quantizer.granularity.split(integers) - torch.where(inside, exact, 0)
        of_step = (upstream * slope).float().reshape(scale.numel(), -1).sum(-1)
        damped = of_step / math.sqrt(exact.numel() / scale.numel() * high)
        of_moved = damped * scale.flatten() * ctx.quantizer.rate
        return (upstream * inside).reshape(gradient.shape).to(gradient.dtype), of_moved, None
