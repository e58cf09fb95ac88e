"""Activation: the importance of a weight is its magnitude times its mean absolute input."""

from torch import Tensor

from slimexp.importance.base import Calibrated


class Activation(Calibrated):
    """``|W_ij| sum_t |x_tj|``, where ``x_tj`` is input channel j at token t of the calibration text.

    Muralidharan et al. 2024, "Compact language models via pruning and knowledge distillation", section 2.2: the
    importance of a neuron or channel is its mean absolute activation. Times the weights that read it, and with the
    2-norm over them, that is the importance of a whole neuron, head or channel (``prune_structured``).
    """

    observes = "input"

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        return observed.float().abs().sum(0)

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        assert statistic is not None
        return weight.detach().abs() * statistic
