"""Unstructured: any single weight may be zero."""

from typing import Literal, get_args

from torch import Tensor

from slimexp.pattern.base import Pattern

Scope = Literal["layer", "global", "row"]


class Unstructured(Pattern):
    """Single weights compete within a scope, and every scope reaches the sparsity.

    Args:
        scope: Weights that compete: those of one ``layer``, of all layers (``global``), or of one output (``row``; Sun
            et al. 2023).
    """

    def __init__(self, *, scope: Scope) -> None:
        if scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}")
        self.scope = scope
        self.across_layers = scope == "global"

    def split(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1) if self.scope == "row" else x.reshape(1, -1, 1)
