"""Weights and inputs of two layers behind one norm."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from slimexp.model.scaling import Scaling

ROWS, COLUMNS = 6, 8


@pytest.fixture
def layers() -> tuple[dict[str, Tensor], Tensor]:
    """Weights [6, 8] of two layers that read the same inputs [50, 8], whose channels differ in size; one is zero."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(ROWS, COLUMNS, generator=generator) for name in "ab"}
    x = torch.randn(50, COLUMNS, generator=generator) * torch.logspace(-1, 1, COLUMNS)
    x[:, 3] = 0
    return weights, x


@pytest.fixture
def scaling() -> Callable[..., Scaling]:
    """Number of copies -> the scaling between a norm of 8 / copies channels and the two layers."""

    def make(copies: int = 1) -> Scaling:
        after = {name: nn.Linear(COLUMNS, ROWS, bias=False) for name in "ab"}
        return Scaling(nn.LayerNorm(COLUMNS // copies), after, width=COLUMNS // copies, copies=copies)

    return make
