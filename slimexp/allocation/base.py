"""How much sparsity, or how many bits, each layer gets where not all get the same."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from slimexp.host.console import counted
from slimexp.quantizer.base import Quantizer
from slimexp.weight.mask import Mask


class Sensitivity:
    """More zeros where the training loss minds them less, as many as wanted over all layers together.

    Each layer is pruned by itself at some sparsities, as in the scan of Li et al. 2017 ("Pruning filters for efficient
    ConvNets", section 3.2). Through the growth of the loss goes the lower convex hull from no sparsity on; zeros are
    given out where the next one costs least, which minimises the sum of the layers' growths (that is not the growth of
    all together).

    Args:
        rows: Rows of training text that the loss is taken of.
        sparsities: Ascending, in (0, 1); no layer gets more than the last.
    """

    def __init__(self, *, rows: int, sparsities: Sequence[float]) -> None:
        if rows < 1:
            raise ValueError(f"rows of training text to scan with must be >= 1, got {rows}")
        grid = [0.0, *sparsities, 1.0]
        if not sparsities or any(a >= b for a, b in pairwise(grid)):
            raise ValueError(f"sparsities must ascend within (0, 1), got {list(sparsities)}")
        self.rows = rows
        self.sparsities = list(sparsities)

    @torch.no_grad()
    def scan(
        self,
        masks: Mapping[str, Mask],
        *,
        keep: Callable[[str, float], Tensor],
        loss: Callable[[], float],
    ) -> dict[str, list[float]]:
        """Layer -> growth of the loss at each of the sparsities; the masks are put back.

        Args:
            masks: On the layers.
            keep: Layer and sparsity -> the mask it would have.
            loss: Of the model as it stands.
        """
        dense = loss()
        growth: dict[str, list[float]] = {}
        for name, mask in counted(masks.items(), "scan of sparsities: layer"):
            before = mask.mask.clone()
            growth[name] = []
            for sparsity in self.sparsities:
                mask.mask.copy_(keep(name, sparsity))
                growth[name].append(loss() - dense)
                mask.mask.copy_(before)
        return growth

    def shares(
        self, growth: Mapping[str, Sequence[float]], sizes: Mapping[str, int], target: float
    ) -> dict[str, float]:
        """Layer -> its sparsity; zeros are ``target`` of all weights, to within one.

        Args:
            growth: As ``scan`` gives it.
            sizes: Layer -> number of its weights.
            target: At most the last of the sparsities.
        """
        left = round(target * sum(sizes.values()))
        pieces = [
            (slope / sizes[name], name, round(end * sizes[name]) - round(start * sizes[name]))
            for name, values in growth.items()
            for slope, start, end in _hull(self.sparsities, values)
        ]
        zeros = dict.fromkeys(sizes, 0)
        for _, name, most in sorted(pieces, key=lambda piece: piece[0]):
            zeros[name] += min(most, left)
            left -= min(most, left)
        return {name: zeros[name] / size for name, size in sizes.items()}


class MixedPrecision:
    """More bits where few of them cost much, within the bytes that one width for all would take.

    Each layer is rounded by itself, to nearest, at every width; of all choices of a width per layer that fit, the one
    with the least sum of costs is taken, exactly (a multiple-choice knapsack, by SciPy's mixed-integer solver). That
    sum is not the cost of all together. As in Dong et al. 2020, "HAWQ-V2", section 3.3, whose cost is an estimate by
    the Hessian's trace; here it is measured: how far the answers to training text move from the unrounded model's.

    Args:
        rows: Rows of training text to answer; each layer costs a forward pass over them per width.
        widths: Ascending, each 2 to 8.
    """

    def __init__(self, *, rows: int, widths: Sequence[int]) -> None:
        if rows < 1:
            raise ValueError(f"allocation.rows must be >= 1, got {rows}")
        if len(widths) < 2 or any(a >= b for a, b in pairwise(widths)) or widths[0] < 2 or widths[-1] > 8:
            raise ValueError(f"allocation.widths must be two or more, ascending, within 2 to 8, got {list(widths)}")
        self.rows = rows
        self.widths = list(widths)

    @torch.no_grad()
    def scan(
        self, weights: Mapping[str, Tensor], *, quantizer: Callable[[int], Quantizer], cost: Callable[[], float]
    ) -> dict[str, list[float]]:
        """Layer -> its cost at each width; the weights are put back.

        Args:
            weights: Those beneath any masks, which are written to; what is masked counts in the range of its group.
            quantizer: Width -> what rounds a weight.
            cost: Of the model as it stands; 0 as it is now.

        Raises:
            ValueError: A cost is not finite.
        """
        costs: dict[str, list[float]] = {}
        for name, weight in counted(weights.items(), "scan of bits: layer"):
            before = weight.detach().clone()
            costs[name] = []
            for one in map(quantizer, self.widths):
                weight.copy_(one.round(before, one.fitted(before)))
                costs[name].append(cost())
            weight.copy_(before)
            if not all(map(math.isfinite, costs[name])):
                raise ValueError(f"layer '{name}': rounded by itself it costs {costs[name]} at {self.widths} bits")
        return costs

    def choose(
        self, costs: Mapping[str, Sequence[float]], stored: Mapping[str, Mapping[int, int]], budget: int
    ) -> dict[str, int]:
        """Layer -> its width; together they take at most ``budget``.

        Args:
            costs: As ``scan`` gives it.
            stored: Layer -> width -> what the layer takes, scales included.
            budget: At least what all layers take at the first width.
        """
        import numpy as np
        from scipy.optimize import LinearConstraint, milp

        layers, widths = len(costs), len(self.widths)
        cost = np.array(list(costs.values()))
        cost *= 1e4 / max(cost.max(), 1e-30)  # the solver holds two sums that differ by 1e-6 for equal
        taken = np.array([[stored[name][width] for width in self.widths] for name in costs], dtype=float)
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
        return {name: self.widths[column] for name, column in zip(costs, chosen, strict=True)}


def _hull(sparsities: Sequence[float], growth: Sequence[float]) -> Iterator[tuple[float, float, float]]:
    """(slope, start, end) of the pieces of the lower convex hull of (0, 0) and the points; slopes ascend from 0 on."""
    rising = accumulate((max(value, 0.0) for value in growth), max)  # noise of few rows may make a loss fall
    points = [(0.0, 0.0), *zip(sparsities, rising, strict=True)]
    start = 0
    while start < len(points) - 1:
        (x, y), rest = points[start], range(start + 1, len(points))
        slope, negative = min(((points[i][1] - y) / (points[i][0] - x), -i) for i in rest)
        yield slope, x, points[-negative][0]
        start = -negative
