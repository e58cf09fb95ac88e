"""Dynamic per-token rounding of activations to integers."""

from slimexp.quantizer.activation import PerToken


class Token(PerToken):
    """Symmetric integers in the full range: the largest clips by half a step, as where it is served."""

    @property
    def limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
