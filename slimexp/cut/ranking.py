"""Units and blocks of a model by importance: the ranking that shapes for any budget are cut by."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from slimexp.architecture.base import EXPERT_FFN, EXPERTS, FFN, scope
from slimexp.architecture.model_type import architecture_of
from slimexp.calibration.observe import calibrate
from slimexp.cut.block_influence import block_influence
from slimexp.cut.constraints import ScopeIndices
from slimexp.cut.expert_use import ExpertUse, expert_use, mixtures, per_group
from slimexp.cut.experts import router_groups
from slimexp.cut.remove import channels_of
from slimexp.cut.shape import ROW_WIDTHS, Shape, readers, rows_of_units, whole
from slimexp.cut.unlike import Unlike
from slimexp.host.progress import counted
from slimexp.importance.base import Calibrated, Importance
from slimexp.model.base import Batch, Family, Weight
from slimexp.model.experts import DOWN, matrices
from slimexp.model.layer import Layer, latent, matrix
from slimexp.record.figures import OF_LAYER

NEURONS = "neurons"  # of blocks, in the record
REAP, FREQUENCY, MERGE = "reap", "frequency", "merge"
EXPERT_RANKS = (REAP, FREQUENCY, MERGE)  # by their saliency; by the tokens they see, with or without a merge to follow


@dataclass(frozen=True)
class Ranking:
    """Every unit of a model by importance, so that any shape retains a prefix of each scope.

    Attributes:
        blocks: Stack -> indices of its blocks, most important first.
        units: Width -> scope -> indices of its units, most important first; of the neurons of experts, [experts, n].
        entries: Axis of ``remove`` -> (width that it belongs to, number of its rows that represent one unit).
        experts: Scope -> what the experts of its mixture do with the calibration text, where they will go.
        unlike: Width of which blocks may keep unlike numbers, and a shape has the mean -> what decides on them.
    """

    blocks: Mapping[str, Sequence[int]]
    units: Mapping[str, Mapping[str, Tensor]]
    entries: Mapping[str, tuple[str, int]]
    experts: Mapping[str, ExpertUse] = field(default_factory=dict)
    unlike: Mapping[str, Unlike] = field(default_factory=dict)

    def layers(self, shape: Shape) -> dict[str, list[int]]:
        """Stack -> indices of the blocks retained in ``shape``, as ``remove`` takes them."""
        return {stack: sorted(order[: shape[stack]]) for stack, order in self.blocks.items()}

    def retained(self, shape: Shape) -> dict[str, ScopeIndices]:
        """Axis -> scope -> rows retained in ``shape``, as ``remove`` takes them, without widths that stay whole."""
        best = {
            width: {scope: order[..., : counts[scope]].sort().values for scope, order in self.units[width].items()}
            for width, counts in self._counts(shape).items()
        }
        return {
            axis: {scope: channels_of(units, rows) if rows > 1 else units for scope, units in best[width].items()}
            for axis, (width, rows) in self.entries.items()
            if width in best
        }

    def figures(self, shape: Shape) -> dict[str, float]:
        """Heads and neurons that stay in each block, for the record; none where they are as many everywhere."""
        counts = self._counts(shape)
        return {
            f"{NEURONS if width == FFN else width}{OF_LAYER}{scope}": float(count)
            for width in self.unlike
            for scope, count in counts.get(width, {}).items()
        }

    def _counts(self, shape: Shape) -> dict[str, dict[str, int]]:
        """Width that does not stay whole -> scope -> number of its units retained."""
        counts = {
            width: dict.fromkeys(scopes, shape[width])
            for width, scopes in self.units.items()
            if shape[width] < next(iter(scopes.values())).shape[-1]
        }
        unlike = {width: found for width, found in self.unlike.items() if width in counts}
        return counts | {width: found.counts(self.layers(shape), shape[width]) for width, found in unlike.items()}


def rank(
    family: Family,
    importance: Importance,
    *,
    norm: float,
    widths: Iterable[str],
    batches: Callable[[int], Iterable[Batch]],
    rows: int,
    objective: Callable[[Batch], Tensor],
    experts: str = REAP,
) -> Ranking:
    """Rank the units of ``widths`` by the scores of weights, and every block by its influence.

    The importance of a unit is the ``norm`` of the scores of the weights that read it. A channel of the residual stream
    is read by many layers, each of which has one vote: its scores divided by their mean. Experts are ranked by what
    they do with the tokens that are routed to them, and their neurons within each by what it reads; where that is
    nothing, by the magnitude of weights.

    Args:
        family: The model; it stays unchanged.
        importance: Scores weights.
        norm: Order p of the l_p norm that turns scores of weights into that of a unit: 1 or 2.
        widths: Those of ``WIDTHS`` that will lose units.
        batches: Number of training rows -> that many batches of one row without padding.
        rows: Number of training rows for the influence of blocks; an importance has a number of its own, which counts
            for experts as well.
        objective: The loss of a batch, for an importance that reads gradients.
        experts: One of ``EXPERT_RANKS``, by which experts are ranked.
    """
    config, wanted = family.model.config, set(widths)
    architecture, dense = architecture_of(config), whole(config)
    layers = _readers(family, wanted)
    every = {name: layer for named in layers.values() for name, layer in named.items()}
    statistics: Mapping[str, Tensor] = {}
    if every and isinstance(importance, Calibrated):
        statistics = calibrate(importance, family, every, batches(importance.rows), objective=objective)
    units: dict[str, dict[str, Tensor]] = {}
    for width, named in layers.items():
        scores: dict[str, Tensor] = {}
        for name, layer in named.items():
            weight = matrix(layer, latent(layer).detach())
            part, scored = scope(name, width, architecture), importance.score(weight, statistics.get(name))
            if width == EXPERT_FFN:
                scored = scored if scored.any() else weight.abs()
                own = _unit_scores(scored, weight.shape[1], norm).view(-1, dense[width])
                scores[part] = torch.cat([scores[part], own]) if part in scores else own
            else:
                votes = _unit_scores(scored, dense[width], norm)
                scores[part] = scores.get(part, 0) + votes / votes.mean().clamp(min=1e-12)
        units[width] = {part: score.cpu().argsort(descending=True, stable=True) for part, score in scores.items()}
    use: dict[str, ExpertUse] = {}
    if wanted & {EXPERTS, EXPERT_FFN}:
        text = batches(importance.rows if isinstance(importance, Calibrated) else rows)
        use = expert_use(family, text, means=experts == MERGE)
    if EXPERTS in wanted:
        groups = router_groups(config)
        ranks = {part: one.saliency if experts == REAP else one.tokens for part, one in use.items()}
        units[EXPERTS] = {part: per_group(score.cpu(), groups) for part, score in ranks.items()}
    entries = {axis: entry for axis, entry in rows_of_units(config).items() if entry[0] in units}
    return Ranking(_rank_blocks(family, batches(rows)), units, entries, use)


def _readers(family: Family, widths: Collection[str]) -> dict[str, dict[str, Layer]]:
    """Width -> name -> layer, or an expert's matrix, that reads units of it."""
    layers: dict[str, dict[str, Layer]] = {
        width: {
            name: Weight(layer, "weight") if isinstance(layer, Conv1D) else layer
            for name, layer in readers(family.model, width).items()
        }
        for width in ROW_WIDTHS
        if width in widths
    }
    if EXPERT_FFN in widths:
        for name, module in mixtures(family).items():
            layers[EXPERT_FFN] |= matrices(f"{name}.{DOWN}", Weight(module, DOWN))
    return layers


def _unit_scores(scores: Tensor, units: int, norm: float) -> Tensor:
    """Scores of the weights of a layer, [out, in] -> scores of the units that it reads, [units]."""
    return scores.float().T.reshape(units, -1).norm(norm, dim=1)


@torch.no_grad()
def _rank_blocks(family: Family, batches: Iterable[Batch]) -> dict[str, list[int]]:
    """Stack -> indices of its blocks, most influential first; a block that must stay precedes all."""
    first_stays = architecture_of(family.model.config).first(family.model.config) is not None
    totals = {stack: torch.zeros(len(blocks)) for stack, blocks in family.blocks().items()}

    def add(stack: str, index: int, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        totals[stack][index] += block_influence(inputs[0], after).cpu()

    was_training = family.model.training
    family.model.eval()
    with ExitStack() as hooks:
        hooks.callback(family.model.train, was_training)
        for stack, blocks in family.blocks().items():
            for index, block in enumerate(blocks):
                hooks.callback(block.register_forward_hook(partial(add, stack, index)).remove)
        for batch in counted(batches, "row for the influence of blocks,"):
            family.run({name: tensor.to(family.device) for name, tensor in batch.items()})
    for total in totals.values():
        total[0] = torch.inf if first_stays else total[0]
    return {stack: total.argsort(descending=True, stable=True).tolist() for stack, total in totals.items()}
