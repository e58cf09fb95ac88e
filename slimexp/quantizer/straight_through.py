"""The straight-through estimator: any function forward, the identity backward (Bengio et al. 2013)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def straight_through(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function(x)``, bit for bit, with the gradient of the identity; compiled, a -0 becomes 0.

    To the compiler it is ``function(x) + (x - x)``, all but one ``x`` detached: torch 2.11 compiles the gradient of a
    ``Function`` that is given a function to zeros, without a word.
    """
    if torch.compiler.is_compiling():
        return function(x.detach()) + (x - x.detach())
    return _StraightThrough.apply(x, function)


class _StraightThrough(torch.autograd.Function):
    # x + (f(x) - x).detach() would be simpler, but adds a rounding error: values must lie on the grid exactly

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
