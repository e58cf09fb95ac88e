"""LSQ: step sizes that are learned with the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from slimexp.quantizer.base import Grid, Quantizer


class Lsq(Quantizer):
    """A learned scale per row or group, from the first grid on that it is shown.

    Esser et al. 2020, "Learned step size quantization": within the grid the step's gradient is ``round(w/s) - w/s``,
    outside it is the outermost integer (equation 3); either is scaled by ``1 / sqrt(N Q)``, N entries to a scale and
    Q the largest integer (section 2.2). The weight's gradient is that of the identity within the grid and 0 outside
    (equation 5). The step starts at ``2 mean |w| / sqrt(Q)``.

    What rounds is the step to a few binary digits, like every scale, with the gradient passed straight through. On
    activations, all entries share one step: with it the clipping is learned, as in PACT (Choi et al. 2018), whose
    gradient, however, sees clipped entries only.

    Attributes:
        step: The learned scales, flat so that optimizers do not decay them; ``None`` before ``freeze``.
    """

    step: nn.Parameter | None
    symmetric_only = True
    on_activations = True

    def __init__(self, *, bits: int, group_size: int | str | None, symmetric: bool = True) -> None:
        super().__init__(bits=bits, group_size=group_size, symmetric=symmetric)
        self.register_parameter("step", None)

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def grid(self, x: Tensor) -> Grid:
        return super().grid(x) if self.step is None or self.frozen else self.learned(x, self.step.detach())

    def fitted(self, x: Tensor) -> Grid:
        mean = self.granularity.split(x).abs().float().mean(-1)
        return Grid(self._exact(2 * mean / math.sqrt(self.limits[1])))

    def learned(self, x: Tensor, step: Tensor) -> Grid:
        """The grid of ``x`` under its steps, or under the one that all entries share."""
        return Grid(self._exact(step.abs()).view(-1 if step.numel() == 1 else (*x.shape[:-1], -1)))

    def start(self, x: Tensor) -> None:
        super().start(x)
        self.step = nn.Parameter(self.fitted(x).scale.flatten())

    def forward(self, x: Tensor) -> Tensor:
        if self.step is None or self.frozen or not self.active:
            return super().forward(x)
        values: Tensor = _Learned.apply(x, self.step, self)
        return values


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, quantizer: Lsq) -> Tensor:
        grid = quantizer.learned(x, step)
        integers = quantizer.integers(x, grid)
        ctx.save_for_backward(quantizer.granularity.split(x).float() / grid.scale.unsqueeze(-1), integers)
        ctx.quantizer, ctx.steps = quantizer, step.numel()
        return quantizer.values(integers, grid).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        exact, integers = ctx.saved_tensors
        low, high = ctx.quantizer.limits
        inside = (exact >= low) & (exact <= high)
        upstream = ctx.quantizer.granularity.split(gradient)
        slope = ctx.quantizer.granularity.split(integers) - torch.where(inside, exact, 0)
        of_step = (upstream * slope).float().reshape(ctx.steps, -1).sum(-1)
        damped = of_step / math.sqrt(exact.numel() / ctx.steps * high)
        return (upstream * inside).reshape(gradient.shape).to(gradient.dtype), damped, None
