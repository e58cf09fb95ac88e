"""Static rounding of activations: one scale per layer, calibrated before."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slimexp.quantizer.base import Grid, Quantizer


class Static(Quantizer):
    """Symmetric grid for activations, fixed by what was seen at ``start``; integers in the full range, as served.

    Args:
        range: Partial of the quantizer whose range is taken, over all that was seen as if it were one row.
    """

    symmetric_only = True
    on_activations = True
    on_weights = False

    def __init__(
        self,
        *,
        bits: int,
        group_size: int | str | None = None,
        symmetric: bool = True,
        range: Callable[..., Quantizer] | None = None,
    ) -> None:
        super().__init__(bits=bits, group_size=None, symmetric=symmetric)
        self.range = range

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def fitted(self, x: Tensor) -> Grid:
        if self.range is None:
            raise ValueError("static activations need calibration before they are rounded: train the stage anew")
        return self.range(bits=self.bits, group_size=None, symmetric=True).fitted(x.flatten())

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.freeze(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.active and not self.frozen:
            raise ValueError("static activations need calibration before they are rounded: call start")
        return super().forward(x)

    def arguments(self) -> dict[str, Any]:
        return {"bits": self.bits}
