"""Choices: what may become of every block of a model, and candidates, which choose for all of them.

Plain transformers holds models whose blocks have one width, so that heads, neurons and channels of the residual stream
are chosen for all blocks at once, and so are the experts of mixtures and their bits; whether a block stays, and its
bits and group size, are chosen block by block (of an encoder-decoder, these for all at once), and so are heads and
neurons where widths may be unlike (see ``model.widths``). There a number of heads or neurons of -r says that a linear
map of rank r is in the place of attention or of feed-forward layers (see ``cut.low_rank``), which then keep none.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERTS, FFN, HEADS, HIDDEN, LAYERS
from slimexp.architecture.model_type import architecture_of
from slimexp.candidate.precision import FLOAT, OWN, Precision, sizes_in_words
from slimexp.candidate.sizes import check_asked, check_ranks, numbers, ranks_fit
from slimexp.cut.shape import WIDTHS, axes_of, possible, whole
from slimexp.cut.unlike import unlike_axes
from slimexp.model.widths import AXES as UNLIKE

REMOVED = "removed"
BITS = "bits"
EXPERT_BITS = "expert_bits"  # of all experts in blocks that are rounded


@dataclass(frozen=True, order=True)
class Place:
    """A block.

    Attributes:
        stack: ``encoder`` or ``decoder``.
        index: Its index in the whole model.
    """

    stack: str
    index: int


def _in_order(place: Place) -> tuple[bool, int]:
    """Blocks of the encoder come before those of the decoder."""
    return place.stack != "encoder", place.index


def _written(units: int) -> str:
    """A number of units in a text: ``0~64`` where a map of rank 64 is in their place."""
    return str(units) if units >= 0 else f"0~{-units}"


STREAM = Place("model", 0)  # what all blocks read and write


@dataclass(frozen=True, order=True)
class Change:
    """One change of one block alone, or of the residual stream.

    Attributes:
        place: The block; ``STREAM`` where it is of all.
        kind: ``removed``, ``heads``, ``ffn``, ``experts``, ``bits``, ``expert_bits`` or ``hidden``.
        value: Number of units or bits that it keeps, below 0 a rank; 0 for ``removed``.
        group_size: Of ``bits``, see ``Precision``.
    """

    place: Place
    kind: str
    value: int
    group_size: int = OWN

    def __str__(self) -> str:
        if self.place == STREAM:
            return f"{self.kind} {self.value}"
        value = "" if self.kind == REMOVED else f" {_written(self.value)}"
        groups = "" if self.group_size == OWN else f" groups of {self.group_size}"
        return f"{self.place.stack} {self.place.index} {self.kind}{value}{groups}"


@dataclass(frozen=True)
class Candidate:
    """A choice for every block.

    Attributes:
        heads: Groups of attention heads that each block keeps, at most; ``None`` where the type cannot lose them.
        ffn: Neurons that each block keeps, at most; ``None`` where the type cannot lose them.
        hidden: Channels of the residual stream; ``None`` where the type cannot lose them.
        bits: Block that stays -> bits of its weights, ``FLOAT`` for those that are not rounded.
        experts: Experts that each mixture keeps; ``None`` where there are none.
        expert_bits: Bits of experts in blocks that are rounded, ``FLOAT`` where they are not; ``None`` as above.
        unlike: ``heads`` or ``ffn``, where blocks keep unlike numbers -> block that stays -> units that it keeps.
        group_sizes: Block that is rounded in groups of another size than the stage's -> that size.
    """

    heads: int | None
    ffn: int | None
    hidden: int | None
    bits: Mapping[Place, int]
    experts: int | None = None
    expert_bits: int | None = None
    unlike: Mapping[str, Mapping[Place, int]] = field(default_factory=dict)
    group_sizes: Mapping[Place, int] = field(default_factory=dict)

    @classmethod
    def of(cls, widths: Mapping[str, int], bits: Mapping[Place, int]) -> "Candidate":
        """The candidate of some ``widths``."""
        each: dict[str, Any] = {name: widths.get(name) for name in (HEADS, FFN, HIDDEN, EXPERTS, EXPERT_BITS)}
        return cls(bits=bits, **each)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def widths(self) -> dict[str, int]:
        """What is chosen for all blocks at once, where the type can lose it -> number of units, or bits of experts."""
        named = {HEADS: self.heads, FFN: self.ffn, HIDDEN: self.hidden}
        named |= {EXPERTS: self.experts, EXPERT_BITS: self.expert_bits}
        return {name: units for name, units in named.items() if units is not None}

    def widths_at(self, place: Place) -> dict[str, int]:
        """``widths``, with the heads and neurons of one block that stays."""
        return self.widths | {name: units[place] for name, units in self.unlike.items()}

    def has_layers(self, place: Place) -> bool:
        """Whether a block that stays has attention or feed-forward layers."""
        widths = self.widths_at(place)
        return any(widths.get(name, 1) for name in (HEADS, FFN))

    @property
    def precisions(self) -> dict[Place, Precision]:
        """Block that stays -> how it is rounded."""
        return {place: Precision(bits, self.group_sizes.get(place, OWN)) for place, bits in self.bits.items()}

    def rounded(self, precisions: Mapping[Place, Precision]) -> "Candidate":
        """The same of other blocks that stay, or of others' precision."""
        sizes = {place: one.group_size for place, one in precisions.items() if one.group_size != OWN}
        return replace(self, bits={place: one.bits for place, one in precisions.items()}, group_sizes=sizes)

    @property
    def is_rounded(self) -> bool:
        """Whether any block has layers that are not floats."""
        return any(bits != FLOAT and self.has_layers(place) for place, bits in self.bits.items())

    def keeping(self, name: str, units: Mapping[Place, int]) -> "Candidate":
        """The same with other numbers of ``heads`` or of neurons (``ffn``), one for each block that stays."""
        most = max(units.values())
        unlike = {other: each for other, each in self.unlike.items() if other != name}
        if min(units.values()) < most:
            unlike[name] = dict(sorted(units.items()))
        widest: dict[str, Any] = {name: most}
        return replace(self, unlike=unlike, **widest)

    def layers(self, stacks: Mapping[str, int]) -> dict[str, list[int]]:
        """Stack -> indices of the blocks that stay, ascending."""
        return {stack: sorted(place.index for place in self.bits if place.stack == stack) for stack in stacks}

    def __str__(self) -> str:
        """Stays and bits block by block, a dot for one that is removed: ``decoder 44.8f, heads 4, ffn 448``.

        Where heads or neurons are unlike, they follow block by block: ``ffn 448/192/0~64``, of the last block none,
        and a map of rank 64 in their place. So do group sizes where they are not the stage's own, a dash for those that
        are: ``group_size 32/-/128``; or ``group_size 32`` for all that are rounded.
        """
        stacks: dict[str, dict[int, int]] = {}
        for place, bits in self.bits.items():
            stacks.setdefault(place.stack, {})[place.index] = bits
        words = []
        for stack, kept in sorted(stacks.items(), reverse=True):
            row = (kept.get(index) for index in range(max(kept) + 1))
            words.append(f"{stack} " + "".join("." if b is None else "f" if b == FLOAT else str(b) for b in row))
        units = {name: _written(units) for name, units in self.widths.items()}
        for name, each in self.unlike.items():
            units[name] = "/".join(_written(each[place]) for place in sorted(each, key=_in_order))
        if self.group_sizes:
            units["group_size"] = sizes_in_words([self.precisions[place] for place in sorted(self.bits, key=_in_order)])
        return ", ".join(words + [f"{name} {number}" for name, number in units.items()])


@dataclass(frozen=True)
class Choices:
    """What may become of the blocks of a model.

    Attributes:
        stacks: Stack -> number of its blocks.
        removable: Blocks that may go.
        widths: ``heads``, ``ffn``, ``hidden``, ``experts`` and ``expert_bits``, where the type can lose them -> numbers
            of units or bits, descending from the whole; ranks of maps, below 0, are among those of heads and ffn.
        combinations: Combinations of widths that a model can have.
        bits: Widths of weights, descending; ``FLOAT`` among them where blocks may stay as they are.
        one_width: Whether all rounded blocks must have the same bits and group size.
        paired: Whether the decoder must not be deeper than the encoder.
        unlike: Those of ``heads`` and ``ffn`` of which blocks may keep unlike numbers.
        group_sizes: Group sizes of blocks that are rounded, that of the stage first.
    """

    stacks: Mapping[str, int]
    removable: frozenset[Place]
    widths: Mapping[str, Sequence[int]]
    combinations: Sequence[Mapping[str, int]]
    bits: Sequence[int]
    one_width: bool
    paired: bool
    unlike: Collection[str] = ()
    group_sizes: Sequence[int | None] = (None,)

    @property
    def ranks(self) -> dict[str, int]:
        """``heads`` and ``ffn``, in whose place there may be maps -> their largest rank."""
        return {name: -sizes[-1] for name, sizes in self.widths.items() if name in UNLIKE and sizes[-1] < 0}

    def shared(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Of some widths those that all blocks must share."""
        return {name: units for name, units in widths.items() if name not in self.unlike}

    @property
    def precisions(self) -> list[Precision]:
        """How a block may be rounded, the most bits first, and of each the stage's group size first."""
        sizes = [OWN, *(size for size in self.group_sizes[1:] if size is not None)]
        return [Precision(bits, size) for bits in self.bits for size in sizes if bits != FLOAT or size == OWN]

    @property
    def places(self) -> list[Place]:
        """All blocks, stack by stack."""
        return [Place(stack, index) for stack, depth in self.stacks.items() for index in range(depth)]

    def changes(self) -> Iterator[Change]:
        """Every change of one block alone, block by block."""
        for place in self.places:
            if place in self.removable:
                yield Change(place, REMOVED, 0)
            for name, sizes in self.widths.items():
                fewer = [bits for bits in sizes if bits != FLOAT] if name == EXPERT_BITS else sizes[1:]
                yield from (Change(place, name, units) for units in fewer if name != HIDDEN)
            yield from (Change(place, BITS, p.bits, p.group_size) for p in self.precisions if p.bits != FLOAT)
        yield from (Change(STREAM, HIDDEN, units) for units in self.widths.get(HIDDEN, ())[1:])


def choices(
    config: PreTrainedConfig,
    *,
    remove: bool,
    heads: Sequence[float],
    ffn: Sequence[float],
    hidden: Sequence[float],
    bits: Sequence[int],
    multiple: int,
    uniform: bool,
    experts: Sequence[float] = (),
    expert_bits: Sequence[int] = (FLOAT,),
    attention_rank: Sequence[int] = (),
    ffn_rank: Sequence[int] = (),
    group_sizes: Sequence[int | None] = (None,),
) -> Choices:
    """The choices for a model.

    Args:
        config: Config of the model.
        remove: Whether whole blocks may go.
        heads: Shares of the groups of heads that may stay, beside all.
        ffn: Shares of the neurons that may stay, beside all.
        hidden: Shares of the channels that may stay, beside all.
        experts: Shares of the experts of a mixture that may stay, beside all.
        bits: Widths of weights, ``FLOAT`` for none.
        expert_bits: Widths of the weights of experts, in blocks whose others are rounded.
        multiple: Divisor of the channels and neurons that stay, which all group sizes divide.
        group_sizes: Group sizes of blocks that are rounded, that of the stage first.
        uniform: Whether all blocks must keep as many heads and neurons.
        attention_rank: Ranks of linear maps that may be in the place of attention.
        ffn_rank: The same in the place of feed-forward layers.

    Raises:
        ValueError: A share, rank or width is out of range, or there is nothing to choose.
    """
    asked = {HEADS: heads, FFN: ffn, HIDDEN: hidden, EXPERTS: experts}
    ranks = {HEADS: attention_rank, FFN: ffn_rank}
    check_asked(asked, {BITS: bits, EXPERT_BITS: expert_bits}, uniform=uniform)
    check_ranks(config, ranks, uniform=uniform)
    dense, free = whole(config), axes_of(config)
    able = [name for name in asked if name in free and name in dense]
    widths = {name: numbers(config, name, asked[name], ranks.get(name, ()), multiple) for name in able}
    if EXPERTS in dense and set(bits) != {FLOAT}:
        widths[EXPERT_BITS] = sorted(set(expert_bits), reverse=True)
    stacks = {key: units for key, units in dense.items() if key not in WIDTHS}
    found = Choices(
        stacks=stacks,
        removable=_removable(config, stacks) if remove and LAYERS in free else frozenset(),
        widths=widths,
        combinations=[some for some in _combinations(config, widths) if possible(config, dense | shape_of(some))],
        bits=sorted(set(bits), reverse=True),
        one_width=bool(config.is_encoder_decoder),
        paired={"encoder", "decoder"} <= stacks.keys(),
        unlike=() if uniform else unlike_axes(config, widths),
        group_sizes=group_sizes,
    )
    if next(iter(found.changes()), None) is None:
        raise ValueError("search has nothing to choose: set search.remove=true, or give search.heads, ffn or bits")
    return found


def units_of(widths: Mapping[str, int]) -> dict[str, int]:
    """Those of some widths that are numbers of units, not of bits."""
    return {name: units for name, units in widths.items() if name != EXPERT_BITS}


def shape_of(widths: Mapping[str, int]) -> dict[str, int]:
    """Units by which a config says some widths: where blocks have none, or a map, at least one."""
    return {name: max(1, units) for name, units in units_of(widths).items()}


def _removable(config: PreTrainedConfig, stacks: Mapping[str, int]) -> frozenset[Place]:
    """Blocks of stacks of some depths without which transformers can load the model."""
    first = 0 if architecture_of(config).first(config) is None else 1
    return frozenset(Place(stack, index) for stack, depth in stacks.items() for index in range(first, depth))


def _combinations(config: PreTrainedConfig, widths: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    every = [dict(zip(widths, units, strict=True)) for units in product(*widths.values())]
    return [some for some in every if ranks_fit(config, some)]
