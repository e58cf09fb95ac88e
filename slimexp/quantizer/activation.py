"""Quantizers of activations: dynamic, with a scale per token, or static, with a calibrated scale."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slimexp.kernel.base import token_scale
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Grid


class PerToken(Quantizer):
    """One scale per token, computed from each input [..., D].

    ``scale = 2 max |x| / (largest - smallest number)``: the arithmetic that compressed-tensors performs on a loaded
    artifact, in the type of the input throughout, so that training and deployment agree. It is not idempotent: rounding
    twice may move the largest entry.

    Some layers read tokens that were flattened to [N, D] (OPT's feed-forward layers, experts). They are rounded per
    token here and by the kernels; compressed-tensors (0.20) computes one scale for all tokens of such an input, so that
    plain transformers executes a coarser version of those layers.
    """

    dynamic = True
    symmetric_only = True
    on_activations = True
    on_weights = False

    def fitted(self, x: Tensor) -> Grid:
        return Grid(token_scale(self.granularity.split(x), *self.limits))

    def round(self, x: Tensor, grid: Grid) -> Tensor:
        groups, scale = self.granularity.split(x), grid.scale.unsqueeze(-1)
        return (self.nearest(groups / scale) * scale).reshape(x.shape)


class Calibrated(Quantizer):
    """One scale for all entries, fixed by the calibration inputs of ``start``."""

    symmetric_only = True
    on_activations = True
    on_weights = False

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.freeze(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.active and not self.frozen:
            raise ValueError("static activations need calibration before they are rounded: call start")
        return super().forward(x)

    def arguments(self) -> dict[str, Any]:
        return {"bits": self.bits}


class Ranged(Calibrated):
    """Symmetric integers in the full range, as deployed; another quantizer computes the range.

    Args:
        range: Partial of a quantizer of weights, with integers of the same width; it is fitted to all calibration
            inputs as one row.
    """

    def __init__(
        self,
        *,
        bits: int,
        group_size: int | str | None = None,
        symmetric: bool = True,
        range: Callable[..., Quantizer] | None = None,
    ) -> None:
        super().__init__(bits=bits, group_size=None, symmetric=symmetric)
        if range is not None:
            _check_range(range, bits)
        self.range = range

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def fitted(self, x: Tensor) -> Grid:
        if self.range is None:
            raise ValueError("static activations need calibration before they are rounded: train the stage anew")
        return self.range(bits=self.bits, group_size=None, symmetric=True).fitted(x.flatten())


def _check_range(range: Callable[..., Quantizer], bits: int) -> None:
    """Refuse a quantizer whose scale is not that of integers of ``bits`` bits: on that of fp8 they would clip."""
    way_out = "for range choose minmax, percentile or mse"
    try:
        quantizer = range(bits=bits, group_size=None, symmetric=True)
    except ValueError as error:
        raise ValueError(f"range: {error}: {way_out}") from error
    if quantizer.stored.is_floating_point or not quantizer.on_weights:
        raise ValueError(f"{type(quantizer).__name__} has no range of integers that activations could take: {way_out}")
