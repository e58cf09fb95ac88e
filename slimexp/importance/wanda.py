"""Wanda: a weight matters as much as what it multiplies is large."""

from torch import Tensor

from slimexp.importance.base import Calibrated


class Wanda(Calibrated):
    """``|W_ij| ||X_j||_2``, where ``X_j`` is input channel j at every token of the calibration.

    Sun et al. 2023, "A simple and effective pruning approach for large language models", equation 1. The paper
    compares the weights of one output row with each other (``pattern.scope=row``), and scores block by block, each
    behind blocks that are pruned already. So it is here, anew whenever the masks grow; with ``pattern.scope=global``
    alone all layers are scored on the model as it stands.
    """

    observes = "input"

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        return observed.float().square().sum(0)

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        assert statistic is not None
        return weight.detach().abs() * statistic.sqrt()
