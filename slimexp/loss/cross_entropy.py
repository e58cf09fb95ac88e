"""Cross-entropy with the labels."""

from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import IGNORE, LabelLoss, Scheduled
from slimexp.schedule import Schedule


class CrossEntropy(LabelLoss):
    """Mean negative log-likelihood of the labels, in nats per label other than -100.

    Args:
        weight: Weight of the term.
        label_smoothing: Share of the probability spread over all classes (Szegedy et al. 2016), in [0, 1).
    """

    def __init__(self, *, weight: float | Schedule, label_smoothing: float) -> None:
        super().__init__(weight=weight)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def of_logits(self, student: Tensor, teacher: Tensor | None, labels: Tensor, scheduled: Scheduled) -> Tensor:
        return F.cross_entropy(
            student.float(), labels, ignore_index=IGNORE, label_smoothing=self.label_smoothing, reduction="sum"
        )
