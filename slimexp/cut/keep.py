"""What a smaller model retains of a larger one: blocks, neurons, heads, channels and experts.

The units retained within a block are those of highest importance, see ``unit_importance`` and ``expert_use``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor
from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERTS, FFN, HEADS, HIDDEN, Architecture, block_index
from slimexp.architecture.model_type import architecture_of, instead, size
from slimexp.cut.constraints import ScopeIndices, admits, check_blocks
from slimexp.cut.expert_use import expert_importance, per_group
from slimexp.cut.experts import check_experts, router_groups
from slimexp.cut.low_rank import LowRank, Maps, check_rank, low_rank
from slimexp.cut.recognition import recognize
from slimexp.cut.remove import head_rows, remove
from slimexp.cut.unit_importance import activity, by_scope, hidden_importance, reader_importance
from slimexp.loss.base import Stack, Stacks
from slimexp.model.base import Batch, Family
from slimexp.model.widths import RANKS, can_drop, largest_rank, refusal, require_alike, sublayers

CALIBRATION_ROWS = 32  # of a batch on which importance is measured
_FITTED = "maps in the place of layers are fitted on calibration text"


Numbers = int | Mapping[str, Sequence[int]] | None  # of units in all blocks, or stack -> in each that stays


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Numbers of units that a smaller model retains; ``None`` retains all.

    Attributes:
        encoder_layers: Indices of the encoder blocks retained, ascending.
        decoder_layers: Indices of the decoder blocks retained, ascending.
        ffn: Number of feed-forward neurons retained per block; or, for unlike widths (see ``model.widths``), stack ->
            that number for each of its blocks retained, in order.
        heads: Number of groups of attention heads retained per block, a key/value head with the query heads that share
            it; or unlike numbers, as of ``ffn``.
        attention_rank: Stack -> rank of the linear map in the place of attention (see ``low_rank``) for each of its
            blocks retained, in order; 0 for none, and above 0 only where ``heads`` is 0.
        ffn_rank: The same in the place of feed-forward layers, where ``ffn`` is 0.
        hidden: Number of channels of the residual stream retained.
        experts: Number of experts retained per mixture, of those that a router chooses between.
        calibration_batches: Number of batches of training text that the importance is measured, and maps fitted, on.
    """

    encoder_layers: Sequence[int] | None
    decoder_layers: Sequence[int] | None
    ffn: int | Mapping[str, Sequence[int]] | None
    heads: int | Mapping[str, Sequence[int]] | None
    attention_rank: Mapping[str, Sequence[int]] | None
    ffn_rank: Mapping[str, Sequence[int]] | None
    hidden: int | None
    experts: int | None
    calibration_batches: int

    def __post_init__(self) -> None:
        if self.calibration_batches < 0:
            raise ValueError(f"cut.calibration_batches must be >= 0, got {self.calibration_batches}")
        if self.ranks and not self.calibration_batches:
            raise ValueError(
                f"cut.calibration_batches must be >= 1 with cut.{RANKS[next(iter(self.ranks))]}: {_FITTED}"
            )

    def apply(self, family: Family, batches: Sequence[Batch]) -> Family:
        """The smaller model, with weights copied from ``family`` (which stays unchanged).

        Args:
            family: The larger model.
            batches: Calibration batches for the importance of neurons, heads, channels and experts; may be empty.

        Raises:
            ValueError: A block, width or architecture that cannot be cut; names what can.
        """
        return self.applied(family, self.choice(family, batches), self.maps(family, batches))

    def applied(self, family: Family, retained: Mapping[str, ScopeIndices], maps: Maps) -> Family:
        """The smaller model that retains what ``choice`` gave, with what ``maps`` gave in the place of layers."""
        config = family.model.config
        return remove(family, self._layers(config, self._architecture(config)), retained, maps=maps)

    def maps(self, family: Family, rows: Iterable[Batch]) -> dict[str, LowRank]:
        """Attention or feed-forward layers -> map in their place; arguments as of ``apply``."""
        layers = self._layers(family.model.config, self._architecture(family.model.config))
        ranks: dict[str, int] = {}
        for axis, given in self.ranks.items():
            names = sublayers(family.model, axis)
            of_blocks = (
                (names[stack, i], rank) for stack in layers for i, rank in zip(layers[stack], given[stack], strict=True)
            )
            ranks |= {name: rank for name, rank in of_blocks if rank}
        if not ranks:
            return {}
        if not (batches := list(rows)):
            raise ValueError(f"cut.{RANKS[next(iter(self.ranks))]} must be null here: {_FITTED}")
        return low_rank(family, ranks, batches)

    def choice(self, family: Family, rows: Iterable[Batch]) -> dict[str, ScopeIndices]:
        """What the smaller model retains: axis -> scope -> indices, ascending; arguments and errors as of ``apply``."""
        batches = list(rows)
        config = family.model.config
        architecture = self._architecture(config)
        retained: dict[str, ScopeIndices] = {}
        asked = {HIDDEN: self.hidden, FFN: self.ffn, HEADS: self.heads}
        seen = activity(family, [axis for axis, units in asked.items() if units is not None], batches)
        if self.hidden is not None:
            channels = hidden_importance(family, seen)
            retained[HIDDEN] = {"": _top_indices(self.hidden, channels, HIDDEN)}
        if self.ffn is not None:
            scores = by_scope(reader_importance(family, FFN, seen), FFN, architecture)
            retained[FFN] = self._best(self.ffn, FFN, scores, config)
        if self.heads is not None:
            groups = size(config, architecture.groups)
            scores = by_scope(reader_importance(family, HEADS, seen), HEADS, architecture)
            scores = {name: score.view(groups, -1).sum(1) for name, score in scores.items()}
            retained |= head_rows(config, self._best(self.heads, HEADS, scores, config))
        if self.experts is not None:
            groups = router_groups(config)
            experts = expert_importance(family, batches or None)
            retained[EXPERTS] = {
                name: per_group(score, groups)[: self.experts].sort().values for name, score in experts.items()
            }
        return retained

    @property
    def ranks(self) -> dict[str, Mapping[str, Sequence[int]]]:
        """Heads or neurons, of which some blocks keep none -> ranks of the maps in the place of those."""
        asked = {HEADS: self.attention_rank, FFN: self.ffn_rank}
        return {axis: ranks for axis, ranks in asked.items() if ranks is not None}

    @property
    def divisors(self) -> dict[str, int | None]:
        """Heads, neurons and ranks -> what their numbers have in common: the one, or the greatest divisor of unlike."""
        asked: dict[str, Numbers] = {HEADS: self.heads, FFN: self.ffn}
        asked |= {RANKS[axis]: ranks for axis, ranks in self.ranks.items()}
        return {
            axis: math.gcd(*chain(*numbers.values())) or None if isinstance(numbers, Mapping) else numbers
            for axis, numbers in asked.items()
        }

    @property
    def is_unlike(self) -> bool:
        """Whether it may leave blocks of unlike widths."""
        return isinstance(self.ffn, Mapping) or isinstance(self.heads, Mapping)

    def validate(self, config: PreTrainedConfig) -> None:
        """Refuse an architecture or an axis that cannot be cut, before anything is loaded.

        Raises:
            ValueError: Names what can be cut.
        """
        self._architecture(config)

    def _architecture(self, config: PreTrainedConfig) -> Architecture:
        """The architecture of a model that can be cut so."""
        recognize(config)
        architecture = architecture_of(config)
        if self.ffn is not None or self.heads is not None:
            require_alike(config)
        requested = {
            HIDDEN: (self.hidden, "hidden"),
            FFN: (self._widest(FFN, self.ffn, config), "ffn"),
            architecture.groups: (self._widest(HEADS, self.heads, config), "heads"),
            EXPERTS: (self.experts, "experts"),
        }
        units = {axis: count for axis, (count, _) in requested.items() if count is not None}
        for axis, count in units.items():
            option = requested[axis][1]
            if not architecture.can_cut(axis, config):
                reason = architecture.refusal(axis, config) or "it has none"
                raise ValueError(
                    f"cut.{option} must be null for a model of type {config.model_type}: {reason}: {instead(config)}"
                )
            if not 0 < count <= size(config, axis):
                raise ValueError(f"cut.{option} must be in 1..{size(config, axis)}, the model's own; got {count}")
        for stack in ("encoder", "decoder"):
            if stack not in architecture.depths and getattr(self, f"{stack}_layers") is not None:
                raise ValueError(f"cut.{stack}_layers must be null: a model of type {config.model_type} has no {stack}")
        try:
            check_blocks(config, self._layers(config, architecture))
        except ValueError as error:
            raise ValueError(f"cut: {error}") from error
        self._check_ranks(config, self._layers(config, architecture))
        if self.experts is not None:
            check_experts(config, self.experts)
        if units and not admits(config, units):
            axis = architecture.groups if architecture.groups in units else next(iter(units))
            raise ValueError(_not_loadable(config, units, axis, requested[axis][1]))
        return architecture

    def _check_ranks(self, config: PreTrainedConfig, layers: Mapping[str, Sequence[int]]) -> None:
        """Refuse ranks above the channels that stay, of blocks that keep units, or not one for each block retained.

        Raises:
            ValueError: States the rule and the value.
        """
        if self.hidden is not None and self.hidden < (most := largest_rank(config)):
            raise ValueError(
                f"cut.hidden must be >= {most}, the largest rank of a map in the place of layers of this model, got "
                f"{self.hidden}"
            )
        depths = {stack: len(blocks) for stack, blocks in layers.items()}
        for axis, ranks in self.ranks.items():
            units, setting = {HEADS: self.heads, FFN: self.ffn}[axis], f"cut.{RANKS[axis]}"
            whole = {stack: [1] * depth for stack, depth in depths.items()}
            kept = units if isinstance(units, Mapping) else whole
            fits = {stack: len(each) for stack, each in ranks.items()} == depths
            if not fits or any(
                r < 0 or (r and n) for stack in depths for r, n in zip(ranks[stack], kept[stack], strict=True)
            ):
                wish = ", ".join(f"{stack}: {n} numbers" for stack, n in depths.items())
                raise ValueError(
                    f"{setting} must be null, or one rank for each block that stays ({wish}), above 0 only where "
                    f"cut.{axis} is a list with 0; got {dict(ranks)}"
                )
            for rank in {rank for each in ranks.values() for rank in each if rank}:
                check_rank(config, axis, rank, setting, hidden=self.hidden)

    def _best(
        self, numbers: Numbers, axis: str, scores: Mapping[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, Tensor]:
        """Scope -> the units of highest importance that it retains, where its block stays."""
        architecture = architecture_of(config)
        if not isinstance(numbers, Mapping):
            assert numbers is not None, axis
            return {name: _top_indices(numbers, score, axis) for name, score in scores.items()}
        layers = self._layers(config, architecture)
        places = [(stack, index) for stack, blocks in layers.items() for index in blocks]
        counts = dict(zip(places, chain(*(numbers[stack] for stack in layers)), strict=True))
        of_scopes = {name: counts.get(place) for name in scores if (place := block_index(name, architecture))}
        return {name: _top_indices(n, scores[name], axis) for name, n in of_scopes.items() if n is not None}

    def _widest(self, axis: str, numbers: Numbers, config: PreTrainedConfig) -> int | None:
        """The largest number of units retained.

        Raises:
            ValueError: There is not one for each block retained, or the type must have as many in every block.
        """
        if not isinstance(numbers, Mapping):
            return numbers
        if (reason := refusal(config, axis)) is not None:
            raise ValueError(f"cut.{axis} must be one number for a model of type {config.model_type}: {reason}")
        layers = self._layers(config, architecture_of(config))
        depths = {stack: len(blocks) for stack, blocks in layers.items()}
        given = {stack: len(widths) for stack, widths in numbers.items()}
        least = 0 if can_drop(config, axis) else 1
        if given != depths or min(chain(*numbers.values())) < least:
            wish = ", ".join(f"{stack}: {n} numbers" for stack, n in depths.items())
            raise ValueError(
                f"cut.{axis} must be one number, or one from {least} for each block that stays ({wish}); got "
                f"{dict(numbers)}"
            )
        return max(1, *chain(*numbers.values()))

    def _layers(self, config: PreTrainedConfig, architecture: Architecture) -> dict[str, list[int]]:
        """Stack -> indices of the blocks retained."""
        requested = {"encoder": self.encoder_layers, "decoder": self.decoder_layers}
        every = {stack: range(getattr(config, key)) for stack, key in architecture.depths.items()}
        return {
            stack: list(blocks if requested[stack] is None else requested[stack] or [])
            for stack, blocks in every.items()
        }


def cut_stacks(whole: Stacks, cut: Keep, config: PreTrainedConfig) -> dict[str, Stack]:
    """What stacks will be like that are cut out of others.

    Args:
        whole: The stacks before.
        cut: What they retain.
        config: The model's config before.
    """
    groups = 1 if cut.heads is None else size(config, architecture_of(config).groups)
    stacks = {}
    for name, stack in whole.items():
        layers = cut.encoder_layers if name == "encoder" else cut.decoder_layers
        blocks = [stack.attention[index] for index in (range(stack.depth) if layers is None else layers)]
        heads = cut.heads[name] if isinstance(cut.heads, Mapping) else [cut.heads or 1] * len(blocks)
        widths = [
            None if block is None or n == 0 else tuple(width * n // groups for width in block)
            for block, n in zip(blocks, heads, strict=True)
        ]
        stacks[name] = Stack(cut.hidden or stack.width, widths)  # type: ignore[arg-type]
    return stacks


def _not_loadable(config: PreTrainedConfig, units: Mapping[str, int], axis: str, option: str) -> str:
    """Message for sizes that transformers does not load, with the nearest that it does."""
    loadable = (n for n in range(1, size(config, axis) + 1) if admits(config, {**units, axis: n}))
    nearest = sorted(sorted(loadable, key=lambda n: abs(n - units[axis]))[:2])
    return (
        f"cut.{option}={units[axis]} gives a model of type {config.model_type} that transformers does not load, for "
        "instance as its heads do not divide its hidden width: nearest that it does "
        f"{' and '.join(map(str, nearest)) or 'none'}"
    )


def _top_indices(count: int, importance: Tensor, axis: str) -> Tensor:
    """Indices of the ``count`` highest scores, [count], ascending."""
    assert count <= len(importance), axis
    return importance.topk(count).indices.sort().values
