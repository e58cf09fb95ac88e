"""Which units of a model matter, and what each would cost: the ranking that every budget is solved from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from slimexp.calibration.observe import calibrate
from slimexp.cut.architecture import anatomy_of, scope
from slimexp.cut.block_influence import block_influence
from slimexp.cut.constraints import Kept
from slimexp.cut.shape import WIDTHS, Shape, readers, rows_of_units, whole
from slimexp.importance.base import Calibrated, Importance
from slimexp.model.base import Batch, Family, Weight
from slimexp.model.layer import Layer, latent, matrix


@dataclass(frozen=True)
class Ranking:
    """Every unit of a model by importance, so that any shape is a prefix of it.

    Attributes:
        blocks: Stack -> indices of its blocks, those that matter most first.
        units: Width -> scope -> indices of its units, those that matter most first.
        entries: Axis of ``Kept`` -> (width it belongs to, rows that stand for one unit).
    """

    blocks: Mapping[str, Sequence[int]]
    units: Mapping[str, Mapping[str, Tensor]]
    entries: Mapping[str, tuple[str, int]]

    def layers(self, shape: Shape) -> dict[str, list[int]]:
        """Blocks that survive in ``shape``, as ``surgery.remove`` takes them."""
        return {stack: sorted(order[: shape[stack]]) for stack, order in self.blocks.items()}

    def kept(self, shape: Shape) -> dict[str, Kept]:
        """Rows that survive in ``shape``, as ``surgery.remove`` takes them; widths that stay whole are left out."""
        best = {
            width: {scope: order[: shape[width]].sort().values for scope, order in scopes.items()}
            for width, scopes in self.units.items()
            if shape[width] < len(next(iter(scopes.values())))
        }
        return {
            axis: {
                scope: (units[:, None] * rows + torch.arange(rows)).flatten() for scope, units in best[width].items()
            }
            for axis, (width, rows) in self.entries.items()
            if width in best
        }


def rank(
    family: Family,
    importance: Importance,
    *,
    norm: float,
    widths: Iterable[str],
    batches: Callable[[int], Iterable[Batch]],
    rows: int,
    objective: Callable[[Batch], Tensor],
) -> Ranking:
    """Score the units of ``widths``, and every block by its influence.

    A unit is as important as the ``norm`` of the scores of the weights that read it. A channel of the residual stream
    is read by many layers, of which each has one vote: its scores by their mean.

    Args:
        family: The model; it is left as it was.
        importance: Scores weights.
        norm: 1 adds the scores of a unit's weights up, 2 takes the root of their squares.
        widths: Those of ``WIDTHS`` that will lose units.
        batches: How many training rows -> those, one by one and without padding.
        rows: How many the blocks' influence is taken from; an importance says itself how many it reads.
        objective: The loss of a batch, for an importance that reads gradients.
    """
    config = family.model.config
    anatomy, dense = anatomy_of(config), whole(config)
    layers: dict[str, dict[str, Layer]] = {
        word: {
            name: Weight(layer, "weight") if isinstance(layer, Conv1D) else layer
            for name, layer in readers(family.model, word).items()
        }
        for word in WIDTHS
        if word in widths
    }
    together = {name: layer for found in layers.values() for name, layer in found.items()}
    seen: Mapping[str, Tensor] = {}
    if together and isinstance(importance, Calibrated):
        seen = calibrate(importance, family, together, batches(importance.rows), objective=objective)
    units: dict[str, dict[str, Tensor]] = {}
    for word, found in layers.items():
        scores: dict[str, Tensor] = {}
        for name, layer in found.items():
            weight = matrix(layer, latent(layer).detach())
            each = _of_units(importance.score(weight, seen.get(name)), dense[word], norm)
            place = scope(name, word, anatomy)
            scores[place] = scores.get(place, 0) + each / each.mean().clamp(min=1e-12)
        units[word] = {place: score.cpu().argsort(descending=True, stable=True) for place, score in scores.items()}
    entries = {axis: entry for axis, entry in rows_of_units(config).items() if entry[0] in units}
    return Ranking(_rank_blocks(family, batches(rows)), units, entries)


def _of_units(scores: Tensor, units: int, norm: float) -> Tensor:
    """Scores of the weights of a layer [out, in] -> of the units that it reads, [units]."""
    return scores.float().T.reshape(units, -1).norm(norm, dim=1)


@torch.no_grad()
def _rank_blocks(family: Family, batches: Iterable[Batch]) -> dict[str, list[int]]:
    """Stack -> its blocks, most influential first; one that must stay is the very first."""
    first = anatomy_of(family.model.config).first_block_stays
    totals = {stack: torch.zeros(len(blocks)) for stack, blocks in family.blocks().items()}

    def look(stack: str, index: int, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        totals[stack][index] += block_influence(inputs[0], after).cpu()

    training = family.model.training
    family.model.eval()
    with ExitStack() as hooks:
        hooks.callback(family.model.train, training)
        for stack, blocks in family.blocks().items():
            for index, one in enumerate(blocks):
                hooks.callback(one.register_forward_hook(partial(look, stack, index)).remove)
        for batch in batches:
            family.forward({name: tensor.to(family.device) for name, tensor in batch.items()})
    for total in totals.values():
        total[0] = torch.inf if first else total[0]
    return {stack: total.argsort(descending=True, stable=True).tolist() for stack, total in totals.items()}
