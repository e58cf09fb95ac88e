"""The base of skew divergences, which hold one distribution against a mixture of both."""

from slimexp.loss.divergence import Divergence
from slimexp.schedule import Schedule


class SkewDivergence(Divergence):
    """A divergence from a mixture, which stays finite where one model denies what the other says.

    Args:
        weight: See ``Divergence``.
        temperature: See ``Divergence``.
        alpha: Share in the mixture of the distribution that it is compared with, in [0, 1); 0 is no skew.
        scale_by_temperature: See ``Divergence``.

    Raises:
        ValueError: ``alpha`` is out of range.
    """

    def __init__(
        self, *, weight: float | Schedule, temperature: float | Schedule, alpha: float, scale_by_temperature: bool
    ) -> None:
        super().__init__(weight=weight, temperature=temperature, scale_by_temperature=scale_by_temperature)
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {alpha}: at 1 nothing is compared")
        self.alpha = alpha
