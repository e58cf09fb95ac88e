"""Numbers of neurons that differ from block to block: of all with the same sum, those that lose least.

What a block loses with fewer neurons is measured for each block alone, and losses are taken to add up, as in the search
for shapes (``budget.solver``). Scores of weights do not compare across blocks: on the zoo's Llama, unlike widths by
their global order lose more than alike ones do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from slimexp.architecture.base import FFN, block_index
from slimexp.architecture.model_type import ARCHITECTURES, architecture_of
from slimexp.cut.constraints import ScopeIndices
from slimexp.host.progress import counted
from slimexp.model.base import Family

POINTS = 9  # numbers of neurons that are measured for each block, the least and the most among them

Layers = Mapping[str, Sequence[int]]
Loss = Callable[[Layers, Mapping[str, ScopeIndices]], float]  # of the model that ``remove`` would give


@dataclass(frozen=True)
class Unlike:
    """What each block loses with fewer neurons, the others whole.

    Attributes:
        losses: Scope -> loss with 1, 2, ... steps of its neurons.
        places: Scope -> stack and index of its block.
        step: Neurons in a step.
    """

    losses: Mapping[str, NDArray[np.float64]]
    places: Mapping[str, tuple[str, int]]
    step: int

    def counts(self, layers: Layers, mean: int) -> dict[str, int]:
        """Scope -> number of its neurons that stay.

        Args:
            layers: Stack -> indices of the blocks that stay.
            mean: Neurons of those blocks, on average; a multiple of ``step``.
        """
        stay = [scope for scope, (stack, index) in self.places.items() if index in layers[stack]]
        if not stay:
            return dict.fromkeys(self.places, mean)
        steps = spread(np.stack([self.losses[scope] for scope in stay]), mean // self.step * len(stay))
        return dict.fromkeys(self.places, mean) | {s: n * self.step for s, n in zip(stay, steps, strict=True)}


def check_unlike(config: PreTrainedConfig, options: Mapping[str, Sequence[int]]) -> None:
    """Refuse to let blocks keep unlike numbers of neurons where none can go, or where the config could not say so.

    Args:
        config: Config of the model.
        options: Width -> numbers of units to choose from.

    Raises:
        ValueError: States the rule and the way out.
    """
    if len(options.get(FFN, ())) < 2:
        raise ValueError("uniform=false is for neurons, and none can go: let ffn be cut too, or set uniform=true")
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"uniform must be true for a model of type {config.model_type}, whose parameters are only recognized by "
            f"their names; it may be false for {', '.join(sorted(ARCHITECTURES))}"
        )


def measure_unlike(family: Family, orders: Mapping[str, Tensor], loss: Loss, step: int) -> Unlike:
    """Measure what each block loses with fewer neurons; between ``POINTS`` numbers of them, losses are interpolated.

    Args:
        family: The model; it stays unchanged.
        orders: Scope -> its neurons, most important first.
        loss: Loss of a smaller model on calibration text.
        step: Number that what stays is a multiple of.
    """
    architecture = architecture_of(family.model.config)
    layers = {stack: range(len(blocks)) for stack, blocks in family.blocks().items()}
    every = {scope: order.sort().values for scope, order in orders.items()}
    losses, places = {}, {}
    for scope, order in counted(orders.items(), "block to lose neurons"):
        most = len(order) // step
        points = np.unique(np.linspace(1, most, POINTS).round().astype(int))
        kept = ({FFN: {**every, scope: order[: count * step].sort().values}} for count in points)
        losses[scope] = np.interp(np.arange(1, most + 1), points, [loss(layers, units) for units in kept])
        place = block_index(scope, architecture)
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
