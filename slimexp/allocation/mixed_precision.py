"""Mixed precision: a bit width for each layer, within the bytes of one width for all."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from slimexp.allocation.base import BitAllocation
from slimexp.host.progress import counted
from slimexp.quantizer.base import Quantizer


class MixedPrecision(BitAllocation):
    """More bits where few of them cost much, within the bytes that one width for all would take.

    Each layer is rounded by itself, to nearest, at every width; of all choices of a width per layer that fit, the one
    with the least sum of costs is taken, exactly (a multiple-choice knapsack, by SciPy's mixed-integer solver). That
    sum is not the cost of all together. As in Dong et al. 2020, "HAWQ-V2", section 3.3, whose cost is an estimate by
    the Hessian's trace; here it is measured: how far the answers to training text move from the unrounded model's.

    Args:
        rows: Number of rows of training text; each layer costs a forward pass over them per width.
        widths: Bits at which each layer is scanned, ascending, each 2 to 8.
    """

    def __init__(self, *, rows: int, widths: Sequence[int]) -> None:
        super().__init__(rows=rows, widths=widths)
        if len(widths) < 2 or any(a >= b for a, b in pairwise(widths)) or widths[0] < 2 or widths[-1] > 8:
            raise ValueError(f"allocation.widths must be two or more, ascending, within 2 to 8, got {list(widths)}")

    @torch.no_grad()
    def scan(
        self, weights: Mapping[str, Tensor], *, quantizer: Callable[[str, int], Quantizer], cost: Callable[[], float]
    ) -> dict[str, list[float]]:
        costs: dict[str, list[float]] = {}
        for name, weight in counted(weights.items(), "scan of bits: layer"):
            before = weight.detach().clone()
            costs[name] = []
            for width in self.widths:
                rounds = quantizer(name, width)
                weight.copy_(rounds.round(before, rounds.fitted(before)))
                costs[name].append(cost())
            weight.copy_(before)
            if not all(map(math.isfinite, costs[name])):
                raise ValueError(f"layer '{name}': rounded by itself it costs {costs[name]} at {self.widths} bits")
        return costs

    def choose(
        self, costs: Mapping[str, Sequence[float]], stored: Mapping[str, Mapping[int, int]], budget: int
    ) -> dict[str, int]:
        import numpy as np
        from scipy.optimize import LinearConstraint, milp

        layers, widths = len(costs), len(self.widths)
        cost = np.array(list(costs.values()))
        cost *= 1e4 / max(cost.max(), 1e-30)  # the solver holds two sums that differ by 1e-6 for equal
        sizes = np.array([[stored[name][width] for width in self.widths] for name in costs], dtype=float)
        solution = milp(
            cost.ravel(),
            integrality=np.ones(cost.size),
            bounds=(0, 1),
            options={"mip_rel_gap": 0.0},
            constraints=[
                LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1),
                LinearConstraint(sizes.ravel() / budget, ub=1),
            ],
        )
        assert solution.x is not None, solution.message
        chosen = solution.x.reshape(layers, widths).argmax(1)
        return {name: self.widths[column] for name, column in zip(costs, chosen, strict=True)}
