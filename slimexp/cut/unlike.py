"""Numbers of neurons or heads that differ from block to block: of all with the same sum, those that lose least.

What a block loses with fewer of them is measured for each block alone, and losses are taken to add up, as in the search
for shapes (``budget.solver``). Scores of weights do not compare across blocks: on the zoo's Llama, unlike widths by
their global order lose more than alike ones do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from slimexp.architecture.base import HEADS, block_index
from slimexp.architecture.model_type import architecture_of
from slimexp.cut.constraints import ScopeIndices
from slimexp.cut.remove import head_rows
from slimexp.host.progress import counted
from slimexp.model.base import Family
from slimexp.model.widths import AXES, refusal

POINTS = 9  # numbers of units that are measured for each block, the least and the most among them

Layers = Mapping[str, Sequence[int]]
Loss = Callable[[Layers, Mapping[str, ScopeIndices]], float]  # of the model that ``remove`` would give


@dataclass(frozen=True)
class Unlike:
    """What each block loses with fewer neurons, or with fewer groups of heads, the others whole.

    Attributes:
        losses: Scope -> loss with 1, 2, ... steps of its units.
        places: Scope -> stack and index of its block.
        step: Units in a step.
    """

    losses: Mapping[str, NDArray[np.float64]]
    places: Mapping[str, tuple[str, int]]
    step: int

    def counts(self, layers: Layers, mean: int) -> dict[str, int]:
        """Scope -> number of its units that stay.

        Args:
            layers: Stack -> indices of the blocks that stay.
            mean: Units of those blocks, on average; a multiple of ``step``.
        """
        stay = [scope for scope, (stack, index) in self.places.items() if index in layers[stack]]
        if not stay:
            return dict.fromkeys(self.places, mean)
        steps = spread(np.stack([self.losses[scope] for scope in stay]), mean // self.step * len(stay))
        return dict.fromkeys(self.places, mean) | {s: n * self.step for s, n in zip(stay, steps, strict=True)}


def unlike_axes(config: PreTrainedConfig, options: Mapping[str, Sequence[int]]) -> list[str]:
    """Those of heads and neurons of which blocks may keep unlike numbers.

    Args:
        config: Config of the model.
        options: Width -> numbers of units to choose from.

    Raises:
        ValueError: There are none, as none can go, or as the config could not say so; states the way out.
    """
    cut = [axis for axis in AXES if len(options.get(axis, ())) > 1]
    if not cut:
        raise ValueError(
            "uniform=false is for heads and neurons, and none of them can go: let heads or ffn be cut too, or set "
            "uniform=true"
        )
    reasons = {axis: refusal(config, axis) for axis in cut}
    if all(reasons.values()):
        raise ValueError(
            f"uniform must be true where {' and '.join(cut)} of a model of type {config.model_type} can go: "
            f"{'; '.join(dict.fromkeys(map(str, reasons.values())))}"
        )
    return [axis for axis, reason in reasons.items() if reason is None]


def measure_unlike(family: Family, axis: str, orders: Mapping[str, Tensor], loss: Loss, step: int) -> Unlike:
    """Measure what each block loses with fewer units; between ``POINTS`` numbers of them, losses are interpolated.

    Args:
        family: The model; it stays unchanged.
        axis: What may be unlike, one of ``model.widths.AXES``.
        orders: Scope -> its units, most important first.
        loss: Loss of a smaller model on calibration text.
        step: Number that what stays is a multiple of.
    """
    config = family.model.config
    layers = {stack: range(len(blocks)) for stack, blocks in family.blocks().items()}
    every = {scope: order.sort().values for scope, order in orders.items()}
    losses, places = {}, {}
    for scope, order in counted(orders.items(), f"block to lose {axis}"):
        most = len(order) // step
        points = np.unique(np.linspace(1, most, POINTS).round().astype(int))
        each = ({**every, scope: order[: count * step].sort().values} for count in points)
        found = [loss(layers, head_rows(config, kept) if axis == HEADS else {axis: kept}) for kept in each]
        losses[scope] = np.interp(np.arange(1, most + 1), points, found)
        place = block_index(scope, architecture_of(config))
        assert place is not None, scope
        places[scope] = place
    return Unlike(losses, places, step)


def spread(losses: NDArray[np.float64], total: int) -> list[int]:
    """Numbers from 1 on, one for each row, that add up to ``total`` and have the least sum of losses.

    Args:
        losses: Loss of 1, 2, ... in each row, [rows, most].
        total: From the number of rows to all of their entries.
    """
    rows, most = losses.shape
    assert rows <= total <= rows * most, (losses.shape, total)
    best = np.full(total + 1, np.inf)  # least loss of the rows so far, by their sum
    best[0] = 0.0
    taken = np.zeros((rows, total + 1), dtype=int)
    for row in range(rows):
        sums = np.full((most, total + 1), np.inf)
        for count in range(1, min(most, total) + 1):
            sums[count - 1, count:] = best[: total + 1 - count] + losses[row, count - 1]
        taken[row], best = sums.argmin(0) + 1, sums.min(0)
    counts = []
    for row in reversed(range(rows)):
        counts.append(int(taken[row, total]))
        total -= counts[-1]
    return counts[::-1]
