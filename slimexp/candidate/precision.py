"""How a block is rounded: the bits of its weights, and how many of them share a scale."""

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT = 16  # bits of a block that is not rounded
OWN = 0  # group size: that of the stage that rounds, whatever it is


@dataclass(frozen=True, order=True)
class Precision:
    """How a block is rounded.

    Attributes:
        bits: Of a weight; ``FLOAT`` where it is not rounded.
        group_size: Number of neighbours that share a scale; ``OWN`` for the stage's, and where it is not rounded.
    """

    bits: int
    group_size: int = OWN

    def __post_init__(self) -> None:
        assert self.group_size == OWN or self.bits != FLOAT, "floats have no groups"


def sizes_in_words(precisions: Sequence[Precision]) -> str:
    """Group sizes of blocks: one for all that are rounded, or one by one, with a dash for the stage's own."""
    of_rounded = {one.group_size for one in precisions if one.bits != FLOAT}
    if len(of_rounded) == 1:
        return str(*of_rounded)
    return "/".join(str(one.group_size or "-") for one in precisions)
