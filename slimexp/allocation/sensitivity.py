"""Allocation by sensitivity: more sparsity in layers whose pruning raises the loss less."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from slimexp.allocation.base import SparsityAllocation
from slimexp.host.progress import counted
from slimexp.weight.mask import Mask


class SensitivityAllocation(SparsityAllocation):
    """More zeros where the training loss grows less from them, up to the target over all layers together.

    Each layer is pruned by itself at some sparsities, as in the scan of Li et al. 2017 ("Pruning filters for efficient
    ConvNets", section 3.2). Through the growth of the loss goes the lower convex hull from no sparsity on; zeros are
    given out where the next one costs least, which minimises the sum of the layers' growths (that is not the growth of
    all together).

    Args:
        rows: Number of rows of training text that the loss is computed on.
        sparsities: Sparsities at which each layer is scanned, ascending, in (0, 1); no layer gets more than the last.
    """

    def __init__(self, *, rows: int, sparsities: Sequence[float]) -> None:
        super().__init__(rows=rows, sparsities=sparsities)
        grid = [0.0, *sparsities, 1.0]
        if not sparsities or any(a >= b for a, b in pairwise(grid)):
            raise ValueError(f"sparsities must ascend within (0, 1), got {list(sparsities)}")

    @torch.no_grad()
    def scan(
        self, masks: Mapping[str, Mask], *, keep: Callable[[str, float], Tensor], loss: Callable[[], float]
    ) -> dict[str, list[float]]:
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
        left = round(target * sum(sizes.values()))
        pieces = [
            (slope / sizes[name], name, round(end * sizes[name]) - round(start * sizes[name]))
            for name, values in growth.items()
            for slope, start, end in lower_hull(self.sparsities, values)
        ]
        zeros = dict.fromkeys(sizes, 0)
        for _, name, most in sorted(pieces, key=lambda piece: piece[0]):
            zeros[name] += min(most, left)
            left -= min(most, left)
        return {name: zeros[name] / size for name, size in sizes.items()}


def lower_hull(sparsities: Sequence[float], growth: Sequence[float]) -> Iterator[tuple[float, float, float]]:
    """Pieces of the lower convex hull of (0, 0) and the points (sparsity, growth).

    Yields:
        Slope, first and last sparsity of each piece, from left to right; slopes ascend from 0 on.
    """
    rising = accumulate((max(value, 0.0) for value in growth), max)  # noise of few rows may make a loss fall
    points = [(0.0, 0.0), *zip(sparsities, rising, strict=True)]
    start = 0
    while start < len(points) - 1:
        (x, y), rest = points[start], range(start + 1, len(points))
        slope, negative = min(((points[i][1] - y) / (points[i][0] - x), -i) for i in rest)
        yield slope, x, points[-negative][0]
        start = -negative
