"""Static rounding of activations to integers: one scale per layer, calibrated before."""

from slimexp.quantizer.activation import Ranged


class Static(Ranged):
    """Integers times one scale per layer, which stays as it was calibrated."""
