"""Taylor: the importance of a weight is the change of the loss without it, to first order."""

from torch import Tensor

from slimexp.importance.base import Calibrated


class Taylor(Calibrated):
    """``sum_r (g_r w)^2``, where ``g_r`` is the gradient of the training loss on row r of the calibration text.

    Molchanov et al. 2019, "Importance estimation for neural network pruning", equation 8: ``g w`` is the first-order
    change of the loss when ``w`` becomes zero. The paper squares it per mini-batch; a row is a mini-batch of one here.
    """

    observes = "gradient"

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        return (observed.float() * weight.float()).square()

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        assert statistic is not None
        return statistic
