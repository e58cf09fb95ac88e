"""Wanda: the importance of a weight is its magnitude times the norm of its input."""

from torch import Tensor

from slimexp.importance.base import Calibrated


class Wanda(Calibrated):
    """``|W_ij| ||X_j||_2``, where ``X_j`` is input channel j at all tokens of the calibration text.

    Sun et al. 2023, "A simple and effective pruning approach for large language models", equation 1. The paper
    compares the weights of one output row with each other (``pattern.scope=row``), and scores block by block, each on
    the outputs of blocks that are pruned already. So it is here, repeated whenever the sparsity grows; only with
    ``pattern.scope=global`` are all layers scored on the current model.
    """

    observes = "input"

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        return observed.float().square().sum(0)

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        assert statistic is not None
        return weight.detach().abs() * statistic.sqrt()
