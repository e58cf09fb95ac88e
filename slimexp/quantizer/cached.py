"""Quantizer of the key/value cache."""

from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import BFLOAT16_DIGITS, Grid


class Cached(Quantizer):
    """A grid per head and token, from the least to the greatest entry: [B, heads, T, D] -> scales [B, heads, T, 1].

    A token's grid does not depend on other tokens, so that reading a text at once or token by token gives the same
    numbers. Hooper et al. 2024, "KVQuant", and Liu et al. 2024, "KIVI", round keys per channel, which needs a window of
    tokens that are still floats.
    """

    widths = range(4, 9, 4)
    dynamic = True
    on_weights = False

    @property
    def digits(self) -> int:
        return BFLOAT16_DIGITS  # scales are cached in bfloat16; their products are not

    def fitted(self, x: Tensor) -> Grid:
        low, high = self.granularity.split(x).aminmax(dim=-1)
        return self.scaled(low, high)
