"""Losses of choices: of one change of one block alone, and of a whole candidate, where changes interact.

The loss is the divergence from the dense model's answers on text that nothing else uses. A sum over single changes
ranks candidates for any budget from one set of scores; it does not see that two neighbouring blocks can do the same,
which the loss of a whole candidate does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from omegaconf import DictConfig

from slimexp.architecture.base import EXPERTS, FFN, HEADS, HIDDEN, block_index
from slimexp.architecture.model_type import architecture_of, size
from slimexp.calibration.divergence import Divergence
from slimexp.candidate.bits import block_name, layers_of, quantize_node, quantizers_of
from slimexp.candidate.choice import BITS, EXPERT_BITS, REMOVED, STREAM, Candidate, Change, Choices, Place
from slimexp.candidate.kept_file import KeptFile
from slimexp.candidate.order import Order
from slimexp.candidate.precision import FLOAT, Precision
from slimexp.config.build import build
from slimexp.cut.constraints import ScopeIndices
from slimexp.cut.keep import CALIBRATION_ROWS
from slimexp.cut.low_rank import LowRank, low_rank
from slimexp.cut.remove import head_rows, remove
from slimexp.cut.simulate import simulated
from slimexp.data.base import Corpus, Example
from slimexp.host.progress import counted
from slimexp.measure.base import spread
from slimexp.model.base import Batch, Family
from slimexp.model.layer import latent
from slimexp.model.widths import sublayers
from slimexp.quantizer.base import Quantizer
from slimexp.technique.batches import training_batches
from slimexp.weight.shared_class import computed_once


def own_rows(corpus: Corpus, graded: Sequence[Example], rows: int, seed: int) -> list[Example]:
    """Rows of the validation split that are not graded, spread evenly over it.

    Args:
        corpus: The text.
        graded: Rows that trials are graded on.
        rows: Number of rows.
        seed: Seed of the choice.

    Raises:
        ValueError: Grading leaves too few.
    """
    taken = {(row.source, row.target) for row in graded}
    free = [row for row in corpus.splits["validation"] if (row.source, row.target) not in taken]
    if len(free) < rows:
        raise ValueError(
            f"search.rows={rows} of the validation split are to be scored on, and grading leaves {len(free)}: "
            "grade fewer rows (search.graded), or lower search.rows"
        )
    return [free[index] for index in spread(len(free), rows, seed)]


class Scorer:
    """Losses of a model's choices.

    Args:
        family: The dense model, in eval mode; it stays as it is.
        corpus: The text.
        rows: Rows that the loss is taken on.
        cut: Config of the cut: how many batches the importance of units is taken on.
        quantize: Config of the stage that rounds; ``None`` where none does.
        seed: Seed of the training text.
        ranks: ``heads`` and ``ffn``, in whose place there may be maps -> the largest rank.
    """

    def __init__(
        self,
        family: Family,
        corpus: Corpus,
        rows: Sequence[Example],
        *,
        cut: DictConfig | None,
        quantize: DictConfig | None,
        seed: int,
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        self.family, self.corpus, self.seed = family, corpus, seed
        self._texts = [(row.source, row.target, row.label) for row in rows]
        self._cut, self._quantize, self._ranks = cut, quantize, ranks or {}
        self._stacks = {name: len(blocks) for name, blocks in family.blocks().items()}
        self._of_stacks: dict[tuple[str, int], float] = {}

    def score(self, choices: Choices, kept: KeptFile) -> dict[Change, float]:
        """Loss of every change alone, nats per token; those in the file are not computed again."""
        changes = list(choices.changes())
        missing = [change for change in changes if str(change) not in kept.numbers]
        for change in counted(missing, "score of choice"):
            kept.add(str(change), self.alone(change))
        return {change: kept.numbers[str(change)] for change in changes}

    @torch.no_grad()
    def alone(self, change: Change) -> float:
        """Loss of one change."""
        place, divergence = change.place, self._divergence  # of the dense model's answers, as long as it is dense
        if change.kind in (BITS, EXPERT_BITS):
            precision = Precision(change.value, change.group_size)
            return self._rounded(place, precision, experts=change.kind == EXPERT_BITS)
        layers = {stack: list(range(depth)) for stack, depth in self._stacks.items()}
        if change.kind == HIDDEN:
            with simulated(self.family, layers, self._channels(change.value)):
                return divergence()
        block = self.family.blocks()[place.stack][place.index]
        if change.kind == REMOVED:
            layers[place.stack].remove(place.index)
            with simulated(self.family, layers, {}):
                return divergence(since=block)
        if change.value < 0:
            name = sublayers(self.family.model, change.kind)[place.stack, place.index]
            with simulated(self.family, layers, {}, {name: self.fitted[name].first(-change.value)}):
                return divergence(since=block)
        if change.kind == HEADS and (shared := self._shared(place)) is not None:
            return self._of_stack(shared, change.value) / self._stacks[place.stack]
        with simulated(self.family, layers, self._of_scope(change.kind, block_name(self.family, place), change.value)):
            return divergence(since=block)

    @torch.no_grad()
    def whole(self, candidate: Candidate) -> float:
        """Loss of a candidate, everything at once, nats per token."""
        return self.of(self.realized(candidate))

    def of(self, family: Family) -> float:
        """Loss of another model of the same tokens."""
        divergence = self._divergence
        divergence.family = family
        try:
            with computed_once():  # of each rounded weight, for all batches
                return divergence()
        finally:
            divergence.family = self.family

    def realized(self, candidate: Candidate) -> Family:
        """The model of a candidate before any training, its quantizers in place: what its pipeline would make."""
        layers = candidate.layers(self._stacks)
        small = remove(self.family, layers, self.retained(candidate), maps=self.maps(candidate))
        node = quantize_node(self._quantize, candidate, small)
        if node is not None:
            stage: Any = build(node)
            stage.prepare(small, self.corpus, None)
            stage.finish()
        return small

    def retained(self, candidate: Candidate) -> dict[str, ScopeIndices]:
        """Axis -> scope -> indices that a candidate retains, as ``Keep`` would choose them."""
        config = self.family.model.config
        kept: dict[str, ScopeIndices] = {}
        if candidate.hidden is not None and candidate.hidden < size(config, HIDDEN):
            kept |= self._channels(candidate.hidden)
        if self._loses(candidate, FFN, FFN):
            kept[FFN] = self._best(candidate, FFN, self.order.ffn)
        if self._loses(candidate, HEADS, architecture_of(config).groups):
            kept |= head_rows(config, self._best(candidate, HEADS, self.order.heads))
        if candidate.experts is not None and candidate.experts < size(config, EXPERTS):
            best = {name: order[: candidate.experts].sort().values for name, order in self.order.experts.items()}
            kept[EXPERTS] = best
        return kept

    def maps(self, candidate: Candidate) -> dict[str, LowRank]:
        """Attention or feed-forward layers -> map that a candidate has in their place."""
        found: dict[str, LowRank] = {}
        for axis in self._ranks:
            names = sublayers(self.family.model, axis)
            units = {names[place.stack, place.index]: candidate.widths_at(place)[axis] for place in candidate.bits}
            found |= {name: self.fitted[name].first(-n) for name, n in units.items() if n < 0}
        return found

    @cached_property
    def fitted(self) -> dict[str, LowRank]:
        """Attention or feed-forward layers that may go -> map of the largest rank in their place."""
        names = {axis: sublayers(self.family.model, axis).values() for axis in self._ranks}
        ranks = {name: self._ranks[axis] for axis, each in names.items() for name in each}
        return low_rank(self.family, ranks, self._calibration()) if ranks else {}

    def _loses(self, candidate: Candidate, name: str, axis: str) -> bool:
        """Whether a block of a candidate keeps fewer units than the model has."""
        most = candidate.widths.get(name)
        return most is not None and (name in candidate.unlike or most < size(self.family.model.config, axis))

    def _best(self, candidate: Candidate, name: str, orders: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Scope -> units that a candidate retains in it, ascending."""
        architecture, most = architecture_of(self.family.model.config), candidate.widths[name]
        units = {(place.stack, place.index): n for place, n in candidate.unlike.get(name, {}).items()}
        counts = {scope: max(0, units.get(block_index(scope, architecture) or ("", 0), most)) for scope in orders}
        return {scope: order[: counts[scope]].sort().values for scope, order in orders.items()}

    @cached_property
    def order(self) -> Order:
        """Units by importance, on training text."""
        return Order.of(self.family, self._calibration())

    def _channels(self, units: int) -> dict[str, ScopeIndices]:
        """What is retained where the residual stream has fewer channels."""
        return {HIDDEN: {"": self.order.hidden[:units].sort().values}}

    def _calibration(self) -> list[Batch]:
        """The batches on which ``Distill`` chooses what its student keeps."""
        count = 0 if self._cut is None else self._cut.calibration_batches
        return list(
            training_batches(
                self.corpus, self.family, batch_size=CALIBRATION_ROWS, seed=self.seed, start=0, stop=count, workers=0
            )
        )

    @cached_property
    def _divergence(self) -> Divergence:
        """On a CPU row by row, so that nothing is computed for padding; a GPU takes all in the time of one."""
        alone = self.family.device.type == "cpu"
        texts = [[text] for text in self._texts] if alone else [self._texts]
        return Divergence(self.family, [self.family.encode(some) for some in texts], blockwise=True)

    def _shared(self, place: Place) -> str | None:
        """Scope in which heads of several blocks are chosen together, as in T5; ``None`` where each has its own."""
        block = block_name(self.family, place)
        return next((scope for scope in self.order.heads if scope and block.startswith(f"{scope}.")), None)

    def _of_stack(self, scope: str, units: int) -> float:
        """Loss with fewer heads in all blocks of a stack, which share them."""
        if (scope, units) not in self._of_stacks:
            layers = {stack: list(range(depth)) for stack, depth in self._stacks.items()}
            with simulated(self.family, layers, self._of_scope(HEADS, scope, units)):
                self._of_stacks[scope, units] = self._divergence()
        return self._of_stacks[scope, units]

    def _of_scope(self, axis: str, scope: str, units: int) -> dict[str, ScopeIndices]:
        """What is retained where only what lies within a scope loses units."""
        orders = {HEADS: self.order.heads, FFN: self.order.ffn, EXPERTS: self.order.experts}[axis]
        best = {
            name: (order[:units] if f"{name}.".startswith(f"{scope}.") else order).sort().values
            for name, order in orders.items()
        }
        return head_rows(self.family.model.config, best) if axis == HEADS else {axis: best}

    def _rounded(self, place: Place, precision: Precision, *, experts: bool) -> float:
        """Loss with the weights of one block rounded, those of its experts or all others."""
        assert self._quantize is not None
        layers = layers_of(self.family, place, experts=experts)
        stage: Any = build(self._quantize)
        stage.adapt_rows(self.family, {})  # where the group size is auto
        before = {name: latent(layer).detach().clone() for name, layer in layers.items()}
        try:
            for name, layer in layers.items():
                rounds: Quantizer = quantizers_of(stage, precision).of(name, layer, bits=precision.bits)
                latent(layer).copy_(rounds.round(before[name], rounds.fitted(before[name])))
            return self._divergence(since=self.family.blocks()[place.stack][place.index])
        finally:
            for name, layer in layers.items():
                latent(layer).copy_(before[name])


@dataclass(frozen=True)
class Added:
    """Losses of choices as sums of those of single changes, nats; what stays whole costs nothing.

    Attributes:
        scores: Change -> its loss alone.
    """

    scores: Mapping[Change, float]

    def base(self, widths: Mapping[str, int]) -> float:
        """Loss of the residual stream's width."""
        return self.scores.get(Change(STREAM, HIDDEN, widths.get(HIDDEN, 0)), 0.0)

    def block(self, place: Place, widths: Mapping[str, int], precision: Precision) -> float:
        """Loss of a block's widths and precision."""
        bits, size = precision.bits, precision.group_size
        names = [name for name in widths if bits != FLOAT or name != EXPERT_BITS]  # of a block of floats, all are
        changes = [Change(place, name, widths[name]) for name in names] + [Change(place, BITS, bits, size)]
        return sum(self.scores.get(change, 0.0) for change in changes)

    def removed(self, place: Place) -> float:
        """Loss of a block's removal."""
        return self.scores.get(Change(place, REMOVED, 0), 0.0)
