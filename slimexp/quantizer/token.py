"""Dynamic per-token rounding of activations to integers."""

from slimexp.quantizer.activation import PerToken


class Token(PerToken):
    """Symmetric integers in the full range: the largest entry clips by half a step, as when deployed."""

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
