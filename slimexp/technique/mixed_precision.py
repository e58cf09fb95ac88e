"""How many bits each layer's weights get, where not all get the same."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from slimexp.quantizer.base import Quantizer


class MixedPrecision:
    """More bits where the training loss minds few of them, within the bytes that one width for all would take.

    Each layer is rounded by itself, to nearest, at every width; of all choices of a width per layer that fit, the one
    with the least sum of the losses' growths is taken, exactly (a multiple-choice knapsack, by SciPy's
    mixed-integer solver). That sum is not the growth of all together. As in Dong et al. 2020, "HAWQ-V2", section 3.3,
    with the growth itself in place of its estimate by the Hessian's trace.

    Args:
        rows: Rows of training text that the loss is taken of; each layer costs a forward pass over them per width.
        widths: Ascending, each 2 to 8.
    """

    def __init__(self, *, rows: int, widths: Sequence[int]) -> None:
        if rows < 1:
            raise ValueError(f"allocation.rows must be >= 1, got {rows}")
        if len(widths) < 2 or any(a >= b for a, b in pairwise(widths)) or widths[0] < 2 or widths[-1] > 8:
            raise ValueError(f"allocation.widths must be two or more, ascending, in 2..8, got {list(widths)}")
        self.rows = rows
        self.widths = list(widths)

    @torch.no_grad()
    def scan(
        self, weights: Mapping[str, Tensor], *, quantizer: Callable[[int], Quantizer], loss: Callable[[], float]
    ) -> dict[str, list[float]]:
        """Layer -> growth of the loss at each width; the weights are put back.

        Args:
            weights: Those that the model multiplies with.
            quantizer: Width -> what rounds a weight.
            loss: Of the model as it stands.
        """
        dense = loss()
        growth: dict[str, list[float]] = {}
        for name, weight in weights.items():
            before = weight.detach().clone()
            growth[name] = []
            for one in map(quantizer, self.widths):
                weight.copy_(one.round(before, one.fitted(before)))
                growth[name].append(loss() - dense)
            weight.copy_(before)
        return growth

    def choose(self, growth: Mapping[str, Sequence[float]], sizes: Mapping[str, int], bits: int) -> dict[str, int]:
        """Layer -> its width; together they take at most the bytes of ``bits`` in all layers.

        Scales count for nothing here: a layer has as many of them at any width.

        Args:
            growth: As ``scan`` gives it.
            sizes: Layer -> number of its weights.
            bits: At least the first width.
        """
        import numpy as np
        from scipy.optimize import LinearConstraint, milp

        layers, widths = len(growth), len(self.widths)
        cost = np.array([values for values in growth.values()]).clip(min=0)  # noise of few rows may make a loss fall
        taken = np.array([[sizes[name] * width for width in self.widths] for name in growth], dtype=float)
        budget = float(bits * sum(sizes.values()))
        found = milp(
            cost.ravel(),
            integrality=np.ones(cost.size),
            bounds=(0, 1),
            options={"mip_rel_gap": 0.0},
            constraints=[
                LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1),
                LinearConstraint(taken.ravel() / budget, ub=1),
            ],
        )
        assert found.x is not None, found.message
        chosen = found.x.reshape(layers, widths).argmax(1)
        return {name: self.widths[column] for name, column in zip(growth, chosen, strict=True)}
