"""Static rounding of activations to integers: one calibrated scale per layer."""

from slimexp.quantizer.activation import Ranged


class Static(Ranged):
    """Integers times one scale per layer, which does not change after calibration."""
