"""Given widths: each layer has the width that a configuration says, without a scan."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from slimexp.allocation.base import BitAllocation
from slimexp.config.by_name import patterns_of
from slimexp.quantizer.base import Quantizer


class Given(BitAllocation):
    """Widths by patterns of layers' names; a search, or a person, has chosen them.

    Args:
        bits: Pattern of names (``*`` for anything) -> width, 2 to 8; the first that matches a layer counts.

    Raises:
        ValueError: There is no pattern, or a width is out of range.
    """

    scans = False

    def __init__(self, *, bits: Mapping[str, int]) -> None:
        if not bits:
            raise ValueError("allocation.bits must name layers, e.g. {*.self_attn.*:8,*:4}; got none")
        if wrong := {pattern: width for pattern, width in bits.items() if not 2 <= width <= 8}:
            raise ValueError(f"allocation.bits must be within 2 to 8, got {wrong}")
        super().__init__(rows=1, widths=sorted(set(bits.values())))
        self.bits = dict(bits)

    def scan(
        self, weights: Mapping[str, Tensor], *, quantizer: Callable[[str, int], Quantizer], cost: Callable[[], float]
    ) -> dict[str, list[float]]:
        """No costs: nothing is scanned."""
        return {name: [] for name in weights}

    def choose(
        self, costs: Mapping[str, Sequence[float]], stored: Mapping[str, Mapping[int, int]], budget: int
    ) -> dict[str, int]:
        """Layer -> its width, whatever it costs.

        Raises:
            ValueError: A layer matches no pattern, or a pattern no layer.
        """
        patterns = patterns_of(costs, self.bits, "allocation.bits")
        return {name: self.bits[pattern] for name, pattern in patterns.items()}
