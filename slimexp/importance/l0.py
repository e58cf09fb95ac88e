"""L0: gates that are open or closed, trained until their expected sparsity meets the target."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimexp.importance.base import Gate, Gated

# Louizos et al. 2018, section 4: temperature, and the interval to which a concrete variable is stretched
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
START = 2.5  # a gate without noise is then 1 exactly, so that the model starts unchanged


class L0(Gated):
    """Hard-concrete gates (Louizos et al. 2018, "Learning sparse neural networks through L0 regularization").

    A Lagrange multiplier of the expected sparsity replaces the paper's fixed penalty per weight, so that the target is
    met: Xia et al. 2023, "Sheared LLaMA", equation 4. The score is the level of the gate; at the end of the ramp the
    technique keeps the highest levels at exactly the target, which the expected sparsity meets only approximately.
    """

    def gate(self, shape: Sequence[int]) -> "HardConcrete":
        return HardConcrete(shape)

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        assert statistic is not None
        return statistic


class HardConcrete(Gate):
    """One gate per entry of a weight.

    Args:
        shape: Shape of the weight.
    """

    noise: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.full(tuple(shape), START))
        self.register_buffer("noise", torch.zeros(tuple(shape)), persistent=False)  # drawn anew at every step

    def draw(self) -> None:
        uniform = torch.rand_like(self.noise).clamp_(1e-6, 1 - 1e-6)
        self.noise.copy_(uniform.log() - (-uniform).log1p())

    def forward(self, weight: Tensor) -> Tensor:
        gate = _stretched(torch.sigmoid((self.noise + self.level) / TEMPERATURE))
        return weight * gate.to(weight.dtype)

    def open(self) -> Tensor:
        return torch.sigmoid(self.level - TEMPERATURE * math.log(-LOW / HIGH))

    def fold(self, weight: Tensor) -> Tensor:
        return weight * _stretched(torch.sigmoid(self.level.detach())).to(weight.dtype)


def _stretched(concrete: Tensor) -> Tensor:
    """Numbers in [0, 1] stretched to [LOW, HIGH] and clipped to [0, 1], same shape."""
    return (concrete * (HIGH - LOW) + LOW).clamp(0, 1)
