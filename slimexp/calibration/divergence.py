"""Divergence of a model's output distributions from those that it had before its weights were changed."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.calibration.observe import undisturbed
from slimexp.host.progress import counted
from slimexp.loss.base import IGNORE
from slimexp.model.base import Batch, Family


class Divergence:
    """Forward Kullback-Leibler divergence per real token from the model's answers at the start to those at a call.

    Where the loss may fall by chance as a layer is changed, this cannot fall below zero, and near the start it is the
    curvature of the loss alone (``d F d / 2`` for a small change d, F being Fisher's information of the model's own
    answers): few rows of text do.

    Args:
        family: The model, whose present answers are the reference.
        batches: Text, on any device; the reference answers to all of it are held on the model's device.

    Raises:
        ValueError: An answer is not finite.
    """

    def __init__(self, family: Family, batches: Iterable[Batch]) -> None:
        self.family = family
        self.batches = [{name: tensor.to(family.device) for name, tensor in batch.items()} for batch in batches]
        self.before = [self._answers(batch) for batch in counted(self.batches, "reference answer")]
        for index, answers in enumerate(self.before):
            if not answers.isfinite().all():
                raise ValueError(f"the model answers with NaN or infinity in calibration batch {index}")

    def __call__(self) -> float:
        """Divergence of the model as it stands from the reference, in nats per token."""
        total = sum(
            F.kl_div(self._answers(batch), before, log_target=True, reduction="sum").item()
            for batch, before in zip(self.batches, self.before, strict=True)
        )
        return max(total, 0.0) / max(sum(len(before) for before in self.before), 1)

    @torch.no_grad()
    def _answers(self, batch: Batch) -> Tensor:
        """Log-probabilities at the N tokens whose label counts, [N, vocabulary]."""
        with undisturbed(self.family):
            logits = self.family.forward(batch)[0]
        return logits[batch["labels"] != IGNORE].float().log_softmax(-1)
