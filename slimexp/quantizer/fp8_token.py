"""Dynamic per-token rounding of activations to fp8."""

from slimexp.quantizer.activation import PerToken
from slimexp.quantizer.float8 import Float8


class Fp8Token(Float8, PerToken):
    """8-bit floating-point numbers times a scale per token."""
