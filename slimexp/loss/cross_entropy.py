"""Cross-entropy with the labels."""

from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import IGNORE, Loss, Outputs


class CrossEntropy(Loss):
    """Mean negative log-likelihood of the labels, in nats per label other than -100.

    Args:
        weight: Weight of the term.
        label_smoothing: Share of the probability spread over all classes (Szegedy et al. 2016), in [0, 1).
    """

    def __init__(self, *, weight: float, label_smoothing: float) -> None:
        super().__init__(weight=weight)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Tensor:
        logits = student.logits.float().flatten(0, -2)
        total = F.cross_entropy(
            logits, labels.flatten(), ignore_index=IGNORE, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / (labels != IGNORE).sum().clamp(min=1)
